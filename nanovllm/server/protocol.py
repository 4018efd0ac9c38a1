"""What a client may ask for: the OpenAI API's request bodies, field by field, and what of it the engine is told.

A field that is not known is refused, and so is one that is known and not served, unless it asks for nothing: a client
never believes that something happened which did not. What is null asks for nothing, known or not.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nanovllm.errors import InvalidRequest
from nanovllm.sampling_params import MAX_LOGPROBS, SamplingParams
from nanovllm.server.fields import (
    BadWords,
    CacheSalt,
    LogitBias,
    Metadata,
    Only,
    Prompts,
    Seed,
    StopStrings,
    TokenIds,
    limits,
)
from nanovllm.server.shape_protocol import ResponseFormat, StructuredOutputs, named_by_client, shape_of
from nanovllm.serving.sampling_defaults import SamplingDefaults
from nanovllm.utils.checks import check

DEFAULT_MAX_TOKENS = 16  # of a completion, as in the OpenAI API; a chat's answer may take all the room there is
NO_LIMIT = 2**31


class Body(BaseModel):
    """What all bodies have in common: they are strict, and an unknown field is an error unless it is null."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        unknown = next((name for name, value in body.items() if value is not None and name not in cls.model_fields), None)
        # One is enough to be refused: half a million of them would become as many complaints.
        return {name: value for name, value in body.items() if name in cls.model_fields or name == unknown}


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[bool | None, Only(False)] = None


class TextRequest(Body):
    """What every request for text may say, on whichever endpoint. None is the default everywhere.

    From `top_k` on, fields go beyond the OpenAI API and mean what they mean in vLLM.
    """

    model: str | None = None
    temperature: Annotated[float | None, limits(minimum=0, maximum=1e6)] = None
    top_p: Annotated[float | None, limits(exclusiveMinimum=0, maximum=1)] = None
    stop: StopStrings = None
    seed: Seed = None
    presence_penalty: Annotated[float | None, limits(minimum=-2, maximum=2)] = None
    frequency_penalty: Annotated[float | None, limits(minimum=-2, maximum=2)] = None
    stream: bool | None = None

    user: str | None = None  # these say something about the request, and nothing about the answer
    metadata: Metadata | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    top_k: Annotated[int | None, limits(minimum=-1, maximum=2**31 - 1)] = None
    min_p: Annotated[float | None, limits(minimum=0, maximum=1)] = None
    repetition_penalty: Annotated[float | None, limits(minimum=1e-6, maximum=1e6)] = None
    ignore_eos: bool | None = None
    priority: Annotated[int | None, limits(minimum=-100, maximum=100)] = None


class GenerationRequest(TextRequest):
    """What completions and chat completions have in common. From `min_tokens` on, fields go beyond the OpenAI API."""

    SAMPLING: ClassVar[tuple[str, ...]] = (
        "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty",
        "min_tokens", "ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "allowed_token_ids", "bad_words",
        "cache_salt")
    default_max_tokens: ClassVar[int] = NO_LIMIT

    max_tokens: Annotated[int | None, limits(minimum=0)] = None
    n: Annotated[int | None, limits(minimum=1)] = None
    logit_bias: LogitBias | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None  # nothing is kept, whatever it says

    min_tokens: Annotated[int | None, limits(minimum=0)] = None
    stop_token_ids: TokenIds | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Annotated[int | None, limits(minimum=0, maximum=MAX_LOGPROBS)] = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    add_special_tokens: bool | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: BadWords = None
    cache_salt: CacheSalt = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    response_format: ResponseFormat = None
    structured_outputs: StructuredOutputs = None

    best_of: Annotated[int | None, Only(1)] = None
    use_beam_search: Annotated[bool | None, Only(False)] = None
    length_penalty: Annotated[float | None, Only(1)] = None
    early_stopping: Annotated[bool | None, Only(False)] = None
    spaces_between_special_tokens: Annotated[bool | None, Only(True)] = None
    truncation_side: Annotated[str | None, Only("left")] = None

    @property
    def tokens_wanted(self) -> tuple[str, int | None]:
        """The field that says how many tokens to generate at most, and what it says."""
        return "max_tokens", self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report at each step; None reports none, nor the drawn one."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    @property
    def only_prompt(self) -> bool:
        """Whether nothing is to be generated: the prompt's own log-probabilities are what the client wants."""
        return self.tokens_wanted[1] == 0 and (self.echoes or self.prompt_logprobs is not None)

    def sampling_params(self, vocab_size: int, defaults: SamplingDefaults) -> SamplingParams:
        """What the engine is told, whatever room the prompt leaves; see `fit`.

        Raises ValueError as SamplingParams does, and for tokens that the model does not have.
        """
        fields = dict(defaults.values)
        fields |= {name: value for name in self.SAMPLING if (value := getattr(self, name)) is not None}
        for key in self.logit_bias or ():
            check(key.isdecimal() and key.isascii(), "logit_bias", key, "token ids as keys", 'pass {"50": -100}')
        bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        for name, tokens in (("stop_token_ids", self.stop_token_ids or ()), ("logit_bias", bias),
                             ("allowed_token_ids", self.allowed_token_ids or ())):
            for token in tokens:
                check(0 <= token < vocab_size, name, token, f"in [0, {vocab_size}), the model's vocabulary", "leave it out")
        if self.stream_options is not None:
            check(bool(self.stream), "stream_options", self.stream_options.model_dump(exclude_none=True),
                  "left out unless stream is true", "set stream to true")
        check(not (self.stream and self.prompt_logprobs is not None), "prompt_logprobs", self.prompt_logprobs,
              "left out when stream is true", "they come with whole answers only")
        name, wanted = self.tokens_wanted
        if self.only_prompt:
            wanted = 1
        check(wanted is None or wanted >= 1, name, wanted, "1 or more", "a request generates at least one token")
        prompt_logprobs = self.num_logprobs if self.echoes and self.prompt_logprobs is None else self.prompt_logprobs
        return SamplingParams(max_tokens=self.default_max_tokens if wanted is None else wanted, stop=tuple(self.stop or ()),
                              stop_token_ids=tuple(self.stop_token_ids or ()), logit_bias=bias or None,
                              logprobs=self.num_logprobs, prompt_logprobs=prompt_logprobs,
                              structured_outputs=shape_of(self.response_format, self.structured_outputs), **fields)

    def in_own_words(self, error: InvalidRequest) -> InvalidRequest:
        """A complaint about the answer's shape, by the names of this body's fields."""
        return named_by_client(error, self.response_format)

    def fit(self, params: SamplingParams, num_prompt_tokens: int, room: int, defaults: SamplingDefaults) -> SamplingParams:
        """`params` for a prompt that leaves room for so many tokens.

        Raises ValueError when a promise would be broken. What nobody asked for, the default, is cut to the room.
        """
        why, remedy = f"the room that a prompt of {num_prompt_tokens} tokens leaves", "lower it or shorten the prompt"
        check(params.min_tokens <= room, "min_tokens", params.min_tokens, f"at most {room}, {why}", remedy)
        name, wanted = self.tokens_wanted
        check(wanted is None or wanted <= room, name, wanted, f"at most {room}, {why}", remedy)
        limit = min(room, defaults.max_tokens or room)
        return params if params.max_tokens <= limit else replace(params, max_tokens=limit)


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    default_max_tokens: ClassVar[int] = DEFAULT_MAX_TOKENS

    prompt: Prompts
    logprobs: Annotated[int | None, limits(minimum=0, maximum=MAX_LOGPROBS)] = None
    echo: bool | None = None
    suffix: Annotated[str | None, Only("")] = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.echo)
