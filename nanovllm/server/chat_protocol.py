"""What a client may ask of a chat: its messages and their options. Strict as `protocol` says."""

from typing import Annotated, Any, Literal

from pydantic import Field

from nanovllm.sampling_params import MAX_LOGPROBS
from nanovllm.server.fields import Content, Only, limits
from nanovllm.server.protocol import Body, GenerationRequest
from nanovllm.utils.checks import check


class Message(Body):
    """One turn of a conversation. An answer of this server may be handed back as it is.

    Programs echo what other servers put into their answers: what says nothing to the model is taken and left out.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    provider_specific_fields: dict[str, Any] | None = None
    thinking_blocks: list[Any] | None = None
    id: str | None = None
    index: int | None = None
    status: str | None = None
    weight: float | None = None
    cache_control: dict[str, Any] | None = None
    audio: Annotated[Any, Only()] = None
    images: Annotated[list[Any] | None, Only([])] = None
    function_call: Annotated[Any, Only()] = None
    tool_calls: Annotated[list[Any] | None, Only([])] = None
    tool_call_id: Annotated[str | None, Only("")] = None

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it."""
        message: dict[str, str] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        reasoning = self.reasoning if self.reasoning_content is None else self.reasoning_content
        if self.name is not None:
            message["name"] = self.name
        if reasoning is not None:  # Qwen's templates put it into think tags, or leave it out of earlier turns
            message["reasoning_content"] = reasoning
        return message


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True)]
    max_completion_tokens: Annotated[int | None, limits(minimum=0)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    verbosity: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    echo: Annotated[bool | None, Only(False)] = None
    response_format: Annotated[dict[str, Any] | None, Only({"type": "text"})] = None
    tools: Annotated[list[Any] | None, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Any] | None, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[list[str] | None, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[str | None, Only()] = None
    include_reasoning: Annotated[bool | None, Only(True)] = None
    web_search_options: Annotated[Any, Only()] = None

    @property
    def tokens_wanted(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().tokens_wanted

    @property
    def num_logprobs(self) -> int | None:
        check(self.logprobs or not self.top_logprobs, "top_logprobs", self.top_logprobs, "left out unless logprobs is true",
              "set logprobs to true")
        return (self.top_logprobs or 0) if self.logprobs else None


class TokenizeRequest(Body):
    """The body of POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Annotated[list[Any] | None, Only([])] = None


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]
