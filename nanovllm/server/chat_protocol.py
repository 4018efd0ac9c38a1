"""What a client may ask of a chat: its messages and their options. Strict as `protocol` says."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from nanovllm.sampling_params import MAX_LOGPROBS, SamplingParams
from nanovllm.server.fields import Only, limits
from nanovllm.server.messages import Message
from nanovllm.server.protocol import Body, GenerationRequest
from nanovllm.server.tool_protocol import CalledTools, ToolChoice, Tools
from nanovllm.serving.sampling_defaults import SamplingDefaults
from nanovllm.utils.checks import check

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True)]
    max_completion_tokens: Annotated[int | None, limits(minimum=0)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    verbosity: str | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    echo: Annotated[bool | None, Only(False)] = None
    functions: Annotated[list[Any] | None, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[list[str] | None, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None

    @cached_property
    def called_tools(self) -> CalledTools:
        return CalledTools(self.tools, self.tool_choice, self.parallel_tool_calls)

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

    def sampling_params(self, vocab_size: int, defaults: SamplingDefaults) -> SamplingParams:
        _ = self.called_tools  # raises where they contradict each other
        return super().sampling_params(vocab_size, defaults)


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
    tools: Tools | None = None
    reasoning_effort: ClassVar[None] = None

    @cached_property
    def called_tools(self) -> CalledTools:
        return CalledTools(self.tools, None, None)


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]
