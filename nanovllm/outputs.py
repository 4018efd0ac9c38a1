"""What a request hands back."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Logprob(NamedTuple):
    """How likely the model thought one token: natural log of its probability, and its place among all tokens, from 1."""

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass
class Usage:
    """Tokens of one request. cached_tokens: how many of the prompt's were found in the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class Timings:
    """Seconds. None for what never came.

    queued: from the request's arrival to the step that admitted it. time_to_first_token: from arrival, too.
    inter_token: between one token and the next, one entry less than there are tokens. total: arrival to last token.
    """

    queued: float | None
    time_to_first_token: float | None
    inter_token: list[float] = field(repr=False)
    total: float | None


@dataclass
class CompletionOutput:
    """One of a request's `n` samples.

    text: the generated text, without what stopped it. token_ids: the generated tokens, with the one that stopped it.
    finish_reason: "stop" (an end-of-sequence token, a stop token or a stop string), "length" (max_tokens or
        max_model_len), "abort" or "error"; None while it runs.
    stop_reason: the stop string or stop token it met; None at the end of sequence.
    logprobs: for each token a dict {token id: Logprob}, the drawn token among them; None when not asked for.
    error: with finish_reason "error", what went wrong.
    num_drafted_tokens, num_accepted_tokens: guesses that were checked for it, and those that were right (speculative
        decoding, and what a grammar forces). Right ones behind the end of a stop string count, and are not in token_ids.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None = None
    logprobs: list[dict[int, Logprob]] | None = field(default=None, repr=False)
    num_preemptions: int = 0
    timings: Timings | None = None
    error: str | None = None
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0

    @property
    def cumulative_logprob(self) -> float | None:
        """Log-probability of the whole sample under the model; None when logprobs were not asked for."""
        return None if self.logprobs is None else sum(
            entry[token].logprob for token, entry in zip(self.token_ids, self.logprobs))


@dataclass
class RequestOutput:
    """One request's samples. Answers both `out.text` and `out["text"]`, as scripts written for nano-vllm expect.

    outputs: the samples, `n` of them; text, token_ids, finish_reason, stop_reason, logprobs, timings, num_preemptions,
        num_drafted_tokens and num_accepted_tokens are the first one's. error: what went wrong with the first of them that
        ended with an error.
    prompt_logprobs: for each prompt token but the first (None) a dict {token id: Logprob}; None when not asked for.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int] = field(repr=False)
    outputs: list[CompletionOutput]
    usage: Usage
    prompt_logprobs: list[dict[int, Logprob] | None] | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        return self.outputs[0].stop_reason

    @property
    def logprobs(self) -> list[dict[int, Logprob]] | None:
        return self.outputs[0].logprobs

    @property
    def timings(self) -> Timings | None:
        return self.outputs[0].timings

    @property
    def num_preemptions(self) -> int:
        return self.outputs[0].num_preemptions

    @property
    def num_drafted_tokens(self) -> int:
        return self.outputs[0].num_drafted_tokens

    @property
    def num_accepted_tokens(self) -> int:
        return self.outputs[0].num_accepted_tokens

    @property
    def num_cached_tokens(self) -> int:
        return self.usage.cached_tokens

    @property
    def error(self) -> str | None:
        return next((output.error for output in self.outputs if output.finish_reason == "error"), None)

    @property
    def is_finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)

    def __getitem__(self, key: str) -> Any:
        names = [name for name in dir(self) if not name.startswith("_")]
        if key not in names:
            raise KeyError(f"{key!r}: a RequestOutput has {', '.join(names)}")
        return getattr(self, key)

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        others = f" and {len(self.outputs) - 1} more samples" if len(self.outputs) > 1 else ""
        return (f"RequestOutput({self.request_id}, {text!r}{others}, {self.usage.prompt_tokens} prompt + "
                f"{self.usage.completion_tokens} tokens, finish_reason={self.finish_reason!r})")
