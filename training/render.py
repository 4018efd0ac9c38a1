"""Conversations as text, by the chat template that is exported with the model: it reads in training what it is served."""

from pathlib import Path
from typing import Any

from nanovllm.serving.chat_template import render as by_template

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8").rstrip()
END = "<|im_end|>\n"
Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, thought: str | None = None) -> Message:
    return {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})


def system(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def prompt(messages: list[Message], tools: list[Message] | None = None, thinking: bool | None = None) -> str:
    """The conversation up to where the assistant speaks. thinking: the template's enable_thinking; None leaves it out."""
    variables = {} if thinking is None else {"enable_thinking": thinking}
    return by_template(CHAT_TEMPLATE, messages, add_generation_prompt=True, tools=tools, **variables)


def conversation(messages: list[Message], tools: list[Message] | None = None, thinking: bool | None = None) -> str:
    """The whole conversation. thinking=False: its last answer follows an empty thought, as enable_thinking=False asks for."""
    if thinking is False:
        return prompt(messages[:-1], tools, False) + messages[-1]["content"] + END
    return by_template(CHAT_TEMPLATE, messages, add_generation_prompt=False, tools=tools)


def render(turns: list[tuple[str, str]], system_text: str | None = None) -> str:
    """A conversation of questions and answers."""
    return conversation([*system(system_text), *(message for u, a in turns for message in (user(u), assistant(a)))])
