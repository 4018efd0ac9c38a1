"""What a client may ask for: the OpenAI API's request bodies, field by field, and what of it the engine is told.

A field that is not known is refused, and so is one that is known and not served, unless it asks for nothing: a client
never believes that something happened which did not.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from nanovllm.sampling_params import MAX_LOGPROBS, SamplingParams
from nanovllm.utils.checks import check


def _only(*neutral: Any) -> AfterValidator:
    """What validates a field that is not served: it may only hold a value that asks for nothing."""
    def validate(value: Any) -> Any:
        if value is not None and value not in neutral:
            raise ValueError("this server does not offer it; leave it out")
        return value
    return AfterValidator(validate)


def _is_text(value: Any) -> bool:
    """JSON can spell half a surrogate pair, which is no character."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _texts(value: Any) -> list[str]:
    if value is None or _is_text(value):
        return [value] if value else []
    if not (isinstance(value, list) and all(map(_is_text, value))):
        raise ValueError("must be a text or a list of texts")
    texts: list[str] = value
    return texts


def _prompts(value: Any) -> list[str | list[int]]:
    """Every prompt as a text or a list of token ids."""
    def is_token_ids(ids: Any) -> bool:
        return isinstance(ids, list) and bool(ids) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    if _is_text(value) or is_token_ids(value):
        return [value]
    if isinstance(value, list) and value and (all(map(_is_text, value)) or all(map(is_token_ids, value))):
        prompts: list[str | list[int]] = value
        return prompts
    raise ValueError("must be a text, a list of texts, a list of token ids or a list of such lists, and none of them empty")


def _content(value: Any) -> str:
    """A message's text, of one piece or of several parts."""
    if isinstance(value, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and _is_text(part.get("text")) for part in value):
            raise ValueError("parts must be of type 'text'; this server reads nothing else")
        return "".join(part["text"] for part in value)
    if not _is_text(value):
        raise ValueError("must be a text or a list of parts of type 'text'")
    content: str = value
    return content


class _Body(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, _only(False)] = None


class GenerationRequest(_Body):
    """What completions and chat completions have in common. None is the default everywhere.

    From `top_k` on, fields go beyond the OpenAI API and mean what they mean in SamplingParams.
    """

    SAMPLING: ClassVar[tuple[str, ...]] = (
        "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty",
        "min_tokens", "ignore_eos", "stop_token_ids", "skip_special_tokens", "include_stop_str_in_output")

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: Annotated[Any, AfterValidator(_texts)] = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: str | None = None  # these four say something about the request, and nothing about the answer
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    @property
    def num_tokens_wanted(self) -> int | None:
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        raise NotImplementedError

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_params(self, vocab_size: int, default_max_tokens: int) -> SamplingParams:
        """Raises ValueError as SamplingParams does, and for tokens that the model does not have."""
        fields = {name: value for name in self.SAMPLING if (value := getattr(self, name)) is not None}
        for key in self.logit_bias or ():
            check(key.isdecimal() and key.isascii(), "logit_bias", key, "token ids as keys", 'pass {"50": -100}')
        bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        for name, tokens in (("stop_token_ids", self.stop_token_ids or ()), ("logit_bias", bias)):
            for token in tokens:
                check(0 <= token < vocab_size, name, token, f"in [0, {vocab_size}), the model's vocabulary", "leave it out")
        if self.stream_options is not None:
            check(bool(self.stream), "stream_options", self.stream_options.model_dump(), "left out unless stream is true",
                  "set stream to true")
        max_tokens = self.num_tokens_wanted
        return SamplingParams(max_tokens=default_max_tokens if max_tokens is None else max_tokens,
                              stop=tuple(_texts(self.stop)), logit_bias=bias or None, logprobs=self.num_logprobs, **fields)


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[Any, AfterValidator(_prompts)]
    logprobs: int | None = None
    echo: Annotated[Any, _only(False)] = None
    best_of: Annotated[Any, _only(1)] = None
    suffix: Annotated[Any, _only("")] = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class Message(_Body):
    """One turn of a conversation. An answer of this server may be handed back as it is."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Any, AfterValidator(_content)]
    name: str | None = None
    refusal: Annotated[Any, _only()] = None
    annotations: Annotated[Any, _only([])] = None
    audio: Annotated[Any, _only()] = None
    function_call: Annotated[Any, _only()] = None
    tool_calls: Annotated[Any, _only([])] = None

    def for_template(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, _only(True, False)] = None
    functions: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only("none", "auto")] = None
    modalities: Annotated[Any, _only(["text"])] = None
    audio: Annotated[Any, _only()] = None
    prediction: Annotated[Any, _only()] = None
    reasoning_effort: Annotated[Any, _only()] = None
    web_search_options: Annotated[Any, _only()] = None

    @property
    def num_tokens_wanted(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        check(self.logprobs or self.top_logprobs is None, "top_logprobs", self.top_logprobs, "left out unless logprobs is true",
              "set logprobs to true")
        return (self.top_logprobs or 0) if self.logprobs else None
