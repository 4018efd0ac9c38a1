"""The shapes of everything the server answers, for type checkers, the OpenAPI document and readers.

Nothing is validated against them while serving: a type checker holds `replies` to them, and a fuzz test the whole server.
"""

from typing import Any, NotRequired

from typing_extensions import TypedDict

TopLogprobs = dict[str, float]
PromptLogprobs = list[dict[str, Any] | None]


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """What every refusal and every failure looks like."""

    error: ErrorDetail


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


class UsageBody(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[TopLogprobs | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_logprobs: NotRequired[PromptLogprobs | None]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class CompletionBody(TypedDict):
    """An answer of /v1/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class ChosenTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChosenTokenLogprob]
    refusal: str | None


class CalledFunctionBody(TypedDict):
    name: str
    arguments: str


class ToolCallBody(TypedDict):
    id: str
    type: str
    function: CalledFunctionBody


class AssistantMessage(TypedDict):
    """content: null where there are tool_calls only. reasoning_content: what the model thought, where it can."""

    role: str
    content: str | None
    refusal: str | None
    reasoning_content: NotRequired[str | None]
    tool_calls: NotRequired[list[ToolCallBody]]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]


class ChatCompletionBody(TypedDict):
    """An answer of /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_logprobs: NotRequired[PromptLogprobs | None]
    prompt_token_ids: NotRequired[list[int]]


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class ResponseUsageBody(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class ResponseBody(TypedDict):
    """An answer of /v1/responses. output: items of type message, reasoning and function_call."""

    id: str
    object: str
    created_at: int
    completed_at: int | None
    status: str
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    model: str
    instructions: str | None
    output: list[dict[str, Any]]
    usage: ResponseUsageBody | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    tool_choice: Any
    tools: list[dict[str, Any]]
    temperature: float
    top_p: float
    max_output_tokens: int | None
    max_tool_calls: int | None
    previous_response_id: str | None
    background: bool
    reasoning: dict[str, str | None]
    service_tier: str
    store: bool
    text: dict[str, Any]
    top_logprobs: int
    truncation: str
    user: str | None


class DeletedResponseBody(TypedDict):
    id: str
    object: str
    deleted: bool


class ModelBody(TypedDict):
    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int


class ModelsBody(TypedDict):
    object: str
    data: list[ModelBody]


class HealthBody(TypedDict):
    status: str
    reason: NotRequired[str]


class VersionBody(TypedDict):
    version: str


class LoadBody(TypedDict):
    server_load: int


class TokenizeBody(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(TypedDict):
    prompt: str


class TokenizerInfoBody(TypedDict):
    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
