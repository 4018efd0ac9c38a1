"""How one model's chats are written: whether it thinks and calls tools, and what its answers are held to."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from nanovllm.errors import InvalidRequest
from nanovllm.outputs import CompletionOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.chat_protocol import ChatCompletionRequest, TokenizeRequest
from nanovllm.serving import thinking, tool_calls
from nanovllm.serving.answer import Answer, AnswerFormat
from nanovllm.serving.answer_grammar import CallableTool, answer_grammar
from nanovllm.serving.chat_template import variables_of
from nanovllm.serving.thinking import Thinks
from nanovllm.serving.tokenizer import Tokenizer
from nanovllm.utils.checks import check

REASONING_PARSERS = ("auto", "none", "qwen3", "deepseek_r1")
SWITCH, EFFORT = "enable_thinking", "reasoning_effort"  # variables of templates: Qwen's and gpt-oss's


@dataclass(frozen=True)
class TemplateFacts:
    """What can be read off a chat template. Immutable.

    variables: the names that it reads. thinks: whether it knows `<think>`. thinks_unasked: whether a model whose thinking
    can be switched thinks where nobody says. calls_tools: whether it tells the model of tools, and to call them in JSON
    between `<tool_call>` tags. hides_tags: whether the tags are special tokens, which a text leaves out.
    """

    variables: frozenset[str] = frozenset()
    thinks: bool = False
    thinks_unasked: bool = False
    calls_tools: bool = False
    hides_tags: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, template: str) -> "TemplateFacts":
        if tokenizer is None:
            return cls()
        try:
            variables = frozenset(variables_of(template))
        except Exception:  # a template that cannot be read: to render it says why
            return cls()
        tags = f"{tool_calls.BEGIN}{thinking.END}"
        shown = tokenizer.decode(tokenizer.encode(tags, add_special_tokens=False), skip_special_tokens=True)
        # Qwen3-Coder writes its calls in XML between the same tags.
        calls_tools = "tools" in variables and tool_calls.BEGIN in template and "<function=" not in template
        return cls(variables, thinking.END in template, _thinks_unasked(tokenizer, variables), calls_tools, shown != tags)


class ChatFormat:
    """What the answers of one model's chats consist of. Knows its tokenizer; changes nothing.

    reasoning_parser: "auto" tells thoughts from answers where the model's template knows `<think>`, "none" never does, and
    vLLM's names of parsers, which are one here, do for any model.
    """

    def __init__(self, tokenizer: Tokenizer | None, reasoning_parser: str = "auto"):
        check(reasoning_parser in REASONING_PARSERS, "reasoning_parser", reasoning_parser, f"one of {REASONING_PARSERS}",
              "'auto' goes by the model's chat template")
        self._tokenizer, self._reasoning_parser = tokenizer, reasoning_parser
        self._facts_of = lru_cache(maxsize=4)(partial(TemplateFacts.of, tokenizer))

    @property
    def facts(self) -> TemplateFacts:
        template = getattr(self._tokenizer, "chat_template", None)
        return self._facts_of(template) if isinstance(template, str) else TemplateFacts()

    def template_arguments(self, body: ChatCompletionRequest | TokenizeRequest) -> dict[str, Any]:
        """The variables that tools and reasoning_effort stand for.

        Raises ValueError, naming the field, for what this model's template does not know.
        """
        facts, arguments = self.facts, dict[str, Any]()
        tools = body.called_tools.tools
        check(not tools or facts.calls_tools, "tools", [tool.function.name for tool in tools], "left out for this model, whose "
              "chat template does not have it call tools as Hermes and Qwen do", "use a model that was taught to")
        if tools:
            arguments["tools"] = [tool.for_template() for tool in tools]
        effort = body.reasoning_effort
        if effort is not None and EFFORT in facts.variables:
            arguments[EFFORT] = effort
        elif effort is not None:
            limit = ("'none' or left out, as this model's chat template knows no thoughts" if not facts.thinks else
                     "left out or anything else, as this model's chat template cannot turn thinking off")
            is_off = effort == "none"
            check(SWITCH in facts.variables or is_off != facts.thinks, EFFORT, effort, limit, "leave it out")
            if SWITCH in facts.variables:
                arguments[SWITCH] = not is_off
        return arguments

    def answer_format(self, body: ChatCompletionRequest, prompt: str) -> AnswerFormat:
        """What the answer to a rendered prompt consists of."""
        thinks = Thinks.NO
        if self._reasoning_parser != "none" and (self.facts.thinks or self._reasoning_parser != "auto"):
            thinks = Thinks.within(body.messages[-1].content) if body.continue_final_message else Thinks.after(prompt)
        called = body.called_tools
        return AnswerFormat(thinks, bool(called.tools), called.max_calls)

    def constrained(self, body: ChatCompletionRequest, form: AnswerFormat, params: SamplingParams) -> SamplingParams:
        """`params`, which hold the answer to the tools that it must call or that are strict, and its thoughts to nothing."""
        called = body.called_tools
        thinks = form.thinks
        if thinks is Thinks.MAYBE and SWITCH in self.facts.variables and not self._is_to_think(body):
            thinks = Thinks.NO
        tools = [CallableTool(tool.function.name, tool.schema_of_arguments(called.is_required)) for tool in called.callable]
        shape = answer_grammar(thinks, tools if called.is_constrained or params.structured_outputs else [],
                               must_call=called.is_required, max_calls=called.max_calls, shape=params.structured_outputs)
        params = replace(params, structured_outputs=shape)
        return replace(params, skip_special_tokens=False) if self.facts.hides_tags and not form.is_plain else params

    def num_reasoning_tokens(self, form: AnswerFormat, output: CompletionOutput) -> int:
        """How many of an answer's tokens are thoughts, the tag that ends them among them."""
        if form.thinks is Thinks.NO or self._tokenizer is None:
            return 0
        end = self._tokenizer.encode(thinking.END, add_special_tokens=False)
        if len(end) == 1 and end[0] in output.token_ids:
            return output.token_ids.index(end[0]) + 1
        reasoning = Answer.of(output.text, form).reasoning
        return min(len(output.token_ids), len(self._tokenizer.encode(reasoning, add_special_tokens=False))) if reasoning else 0

    def _is_to_think(self, body: ChatCompletionRequest) -> bool:
        """Whether thinking is on, of a model in which it can be turned on and off."""
        said = {**self.template_arguments(body), **(body.chat_template_kwargs or {})}.get(SWITCH)
        return self.facts.thinks_unasked if said is None else bool(said)


def refused_tools(error: InvalidRequest, body: ChatCompletionRequest) -> InvalidRequest:
    """What to say of a grammar that cannot be compiled: it was made of the tools, and the client never saw it."""
    said = str(error)
    if not said.startswith("structured_outputs.grammar") or not body.called_tools.is_constrained:
        return error
    names = [tool.function.name for tool in body.called_tools.callable]
    why = said[said.rfind(" (") + 2:said.rfind(")")]
    return InvalidRequest(f"tools={names!r}: must have parameters that can be compiled, and that some arguments fit ({why}); "
                          "ask for fewer or simpler ones.")


def _thinks_unasked(tokenizer: Tokenizer, variables: frozenset[str]) -> bool:
    """Whether a template that nobody tells to think opens a turn as one that is told to."""
    if SWITCH not in variables:
        return False

    def rendered(**said: bool) -> str | None:
        try:
            return str(tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False,
                                                     add_generation_prompt=True, **said))
        except Exception:  # as above
            return None

    unasked = rendered()
    return unasked is not None and unasked == rendered(**{SWITCH: True})
