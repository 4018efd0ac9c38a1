"""What a client may ask of /v1/responses, and the chat that it comes to. Strict as `protocol` says."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema

from nanovllm.errors import InvalidRequest
from nanovllm.server.chat_protocol import ChatCompletionRequest, ReasoningEffort
from nanovllm.server.fields import Only, limits
from nanovllm.server.messages import Message
from nanovllm.server.protocol import Body, TextRequest
from nanovllm.server.response_items import Input
from nanovllm.server.tool_protocol import TOOL_NAME, FunctionDefinition, Tool
from nanovllm.utils.checks import check


class ResponseTool(Body):
    """A function that the model may call. parameters: the JSON schema of its arguments, an object."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_tool(self) -> Tool:
        return Tool(type="function", function=FunctionDefinition(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict))


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    def as_response_format(self) -> dict[str, Any]:
        """The same as /v1/chat/completions takes it."""
        if self.type != "json_schema":
            return {"type": self.type}
        described = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": self.strict}
        return {"type": "json_schema", "json_schema": {name: said for name, said in described.items() if said is not None}}


class Text(Body):
    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(Body):
    """summary: thoughts come whole, as content; "auto" leaves it at that."""

    effort: ReasoningEffort | None = None
    summary: Annotated[str | None, Only("auto")] = None
    generate_summary: Annotated[str | None, Only("auto")] = None


class ResponseStreamOptions(Body):
    include_obfuscation: Annotated[bool | None, Only(False)] = None


def _tool_choice(value: Any) -> Any:
    named = isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("name"), str)
    if value not in (None, "none", "auto", "required") and not named:
        raise ValueError('must be one of none, auto, required or {"type": "function", "name": NAME}; this server offers no '
                         "other")
    return value


def _include(value: list[str]) -> list[str]:
    for name in value:
        if name != "reasoning.encrypted_content":  # thoughts come in the clear, so that there is nothing more to include
            raise ValueError(f"{name[:100]!r} is not offered; leave it out")
    return value


class ResponsesRequest(TextRequest):
    """The body of POST /v1/responses. Here `stop`, `seed` and the penalties go beyond the OpenAI API, too."""

    input: Input
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, limits(minimum=1)] = None
    stream_options: ResponseStreamOptions | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True)] | None = None
    tool_choice: Annotated[Any, AfterValidator(_tool_choice), WithJsonSchema({"anyOf": [
        {"enum": ["none", "auto", "required", None]},
        {"type": "object", "required": ["type", "name"],
         "properties": {"type": {"const": "function"}, "name": {"type": "string"}}}]})] = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None

    include: Annotated[list[str], AfterValidator(_include)] | None = None

    chat_template_kwargs: dict[str, Any] | None = None

    background: Annotated[bool | None, Only(False)] = None
    conversation: Annotated[Any, Only()] = None
    context_management: Annotated[list[Any] | None, Only([])] = None
    max_tool_calls: Annotated[int | None, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prompt: Annotated[Any, Only()] = None
    top_logprobs: Annotated[int | None, Only(0)] = None
    truncation: Annotated[str | None, Only("disabled")] = None

    SHARED: ClassVar[tuple[str, ...]] = (
        "temperature", "top_p", "stream", "seed", "stop", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "ignore_eos", "priority", "chat_template_kwargs", "parallel_tool_calls", "model")

    def as_chat(self, messages: list[Message]) -> "ResponsesChat":
        """The chat that this comes to, after what was said before. Raises InvalidRequest for what no chat may ask."""
        check(len(messages) > 0, "input", [], "at least one message", "ask something")
        if self.instructions is not None:
            messages = [Message(role="system", content=self.instructions), *messages]
        fields = {name: value for name in self.SHARED if (value := getattr(self, name)) is not None}
        choice = self.tool_choice
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        form = None if self.text is None or self.text.format is None else self.text.format.as_response_format()
        try:
            return ResponsesChat.model_validate(fields | {
                "messages": messages, "tools": [tool.as_tool() for tool in self.tools or ()], "tool_choice": choice,
                "response_format": form, "max_completion_tokens": self.max_output_tokens,
                "reasoning_effort": None if self.reasoning is None else self.reasoning.effort})
        except ValidationError as error:  # of the text's format: the rest has been looked at
            raise InvalidRequest(f"text.format={form!r}: must be a format that chats take "
                                 f"({error.errors()[0]['msg'].removeprefix('Value error, ')}); correct it.") from None


class ResponsesChat(ChatCompletionRequest):
    """A chat that was asked for as a response."""

    def in_own_words(self, error: InvalidRequest) -> InvalidRequest:
        said = str(super().in_own_words(error))
        if not said.startswith("response_format"):
            return error
        return InvalidRequest(re.sub(r"^response_format(\.json_schema)?", "text.format", said))

    @property
    def tokens_wanted(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_completion_tokens
