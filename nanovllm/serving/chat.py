"""From a conversation to a prompt: what `chat` takes, and what can be wrong with it."""

import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanovllm.errors import InvalidRequest
from nanovllm.sampling_params import SamplingParams
from nanovllm.serving.tokenizer import Tokenizer
from nanovllm.utils.numbers import shown

# Arguments of a tokenizer's method that renders a chat, as against variables that its template reads.
OPTIONS = ("chat_template", "add_generation_prompt", "continue_final_message", "tools", "documents")
RESERVED = ("conversation", "messages", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
            "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs")
SAMPLING = {field.name for field in fields(SamplingParams)}


class ChatPrompt(str):
    """A rendered conversation: a text whose special tokens stand in it already, so that `encode` adds none."""


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a prompt, with those that the tokenizer puts around any text unless a chat template wrote them."""
    return tokenizer.encode(text, add_special_tokens=False) if isinstance(text, ChatPrompt) else tokenizer.encode(text)


def render_chat(tokenizer: Tokenizer, model: Path, messages: Any, arguments: Mapping[str, Any],
                more: Mapping[str, Any] | None = None) -> ChatPrompt:
    """The text that the model's chat template makes of a conversation.

    arguments: OPTIONS and variables of the template. more: the same as one dict, which is vLLM's `chat_template_kwargs`.
    The assistant's turn is opened (`add_generation_prompt`) unless its last one is to be continued.

    Raises InvalidRequest for messages, arguments or a template that cannot be rendered, with the template's own words where
    it has any. Warns of a variable that the template does not read.
    """
    given = _merged(arguments, more)
    conversation = list(messages) if isinstance(messages, (list, tuple)) and messages else [messages]
    for message in conversation:
        keys = ("role",) if _only_calls(message) else ("role", "content")
        if not (isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in keys)):
            raise InvalidRequest(f"message={shown(message)}: must be a dict with a 'role' and a 'content', both texts; "
                                 'pass [{"role": "user", "content": "Hello"}].')
    continued = given.pop("continue_final_message", False)
    opened = given.pop("add_generation_prompt", not continued)
    if continued and opened:
        raise InvalidRequest("add_generation_prompt=True: must be False with continue_final_message, as either the last "
                             "message goes on or a new one begins; leave out one of them.")
    template = given.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if template is None:
        raise InvalidRequest(f"model={str(model)!r}: must have a chat template for chat; pass chat_template, or a text to "
                             "generate().")
    from jinja2.exceptions import TemplateError, TemplateSyntaxError
    try:
        if isinstance(template, str):
            _warn_of_unread(template, [name for name in given if name not in OPTIONS])
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=bool(opened),
                                             continue_final_message=continued, **given)
    except TemplateSyntaxError as error:
        raise InvalidRequest(f"the chat template of {model.name} is not valid, in line {error.lineno}: {error.message}; copy "
                             "it again, or pass chat_template.") from error
    except TemplateError as error:
        raise InvalidRequest(f"the chat template refuses these messages: {error.message}") from error
    except InvalidRequest:
        raise
    except Exception as error:  # a template is a program, and fails in as many ways
        raise InvalidRequest(f"the chat template cannot render these messages ({type(error).__name__}: {error}); check roles, "
                             "contents and template arguments.") from error
    return ChatPrompt(text)


def _only_calls(message: Any) -> bool:
    """Whether a message consists of tool calls, and says nothing."""
    return isinstance(message, Mapping) and bool(message.get("tool_calls")) and message.get("content") is None


def _merged(arguments: Mapping[str, Any], more: Mapping[str, Any] | None) -> dict[str, Any]:
    if more is not None and not (isinstance(more, Mapping) and all(isinstance(name, str) for name in more)):
        raise InvalidRequest(f"chat_template_kwargs={shown(more)}: must be a dict from names to values; pass "
                             '{"enable_thinking": False}, say.')
    more = more or {}
    for name in (*arguments, *more):
        if name in RESERVED:
            raise InvalidRequest(f"chat template argument={name!r}: must not be one of {', '.join(RESERVED)}, which belong to "
                                 "the tokenizer; leave it out.")
        if name in arguments and name in more:
            raise InvalidRequest(f"chat template argument={name!r}: must be given once; leave it out of chat_template_kwargs.")
    return {**arguments, **more}


def _warn_of_unread(template: str, names: list[str]) -> None:
    if not names:
        return
    from nanovllm.serving.chat_template import variables_of
    unread = [name for name in names if name not in variables_of(template)]
    for name in unread:
        if name in SAMPLING:
            raise InvalidRequest(f"chat template argument={name!r}: must be a variable that the model's chat template reads; "
                                 f"pass SamplingParams({name}=...) as sampling_params.")
    if unread:
        warnings.warn(f"the model's chat template does not read {', '.join(unread)}, so it changes nothing", stacklevel=5)
