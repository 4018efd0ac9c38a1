"""What a request asks for: how to draw its tokens, when to stop, and what to hand back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from nanovllm.errors import InvalidRequest
from nanovllm.structured_outputs import StructuredOutputsParams
from nanovllm.utils.checks import check_keywords, check_request
from nanovllm.utils.numbers import FLOAT32_TINY, is_int, is_number, plain, shown

MAX_LOGPROBS = 20  # what the OpenAI API and vLLM allow
MAX_SAMPLES = 16384  # of one prompt, as in vLLM
MIN_TEMPERATURE = 1e-5  # below it scores leave float32 before noise can matter: what is meant is 0, as in vLLM
MAX_TEMPERATURE = 1e6  # by then every token is as likely as every other


@dataclass(frozen=True)
class SamplingParams:
    """How one request draws its tokens, when it ends and what it reports. Immutable: one object may serve many requests.

    Fields mean what they mean in vLLM; the filters apply in transformers' order.

    temperature: 0 is greedy, and so is what is below 1e-5; otherwise logits are divided by it before the draw. At most 1e6.
    top_k: keep the k most likely tokens; 0 or -1 keeps all.
    top_p: keep the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2019, "nucleus").
    min_p: drop tokens less likely than min_p times the most likely one (Nguyen et al. 2024).
    seed: fixes the draws of this request, whatever else is in its batch; None: the engine picks one.
    repetition_penalty: logits of tokens in prompt or output are divided by it when positive and multiplied when
        negative (Keskar et al. 2019, CTRL); in [1e-6, 1e6], 1 is off.
    presence_penalty, frequency_penalty: taken from the logits of tokens in the output, once, or as often as they
        occurred; in [-2, 2], 0 is off.
    logit_bias: {token id: a number in [-100, 100]}, added to the logits.
    allowed_token_ids: draw no other tokens than these; None is every one.
    bad_words: texts that must not be written: the last token of each is not drawn behind the others, at the beginning of a
        word; inside a longer token they go unnoticed. bad_words_ids: the same as token ids.
    max_tokens, min_tokens: most and fewest tokens to generate; before min_tokens no stop string counts, and no token
        that would end the request is drawn.
    ignore_eos: do not end at the model's end-of-sequence tokens.
    stop: texts that end the request with `finish_reason` "stop"; what comes before stays.
    stop_token_ids: tokens that do the same. include_stop_str_in_output: keep what stopped it in the text.
    n: how many samples to draw for the prompt, 16,384 at most; sample i draws as a request with seed + i would.
    logprobs: report this many of the most likely tokens at each step, and the one drawn; 0..20, None is off. They are
        those of the model's own scores, before penalties, temperature and filters.
    prompt_logprobs: the same for the prompt's tokens.
    structured_outputs: the shape that the text must have; see `StructuredOutputsParams`. It ends with "stop" when it has it
        and nothing can follow, whatever `min_tokens` and `ignore_eos` say.
    skip_special_tokens: leave the tokenizer's special tokens out of the text.
    cache_salt: share cached blocks of the prompt only with requests of the same salt; see `SaltedSequence`.

    Numbers may be numpy's or torch's, lists may be arrays: they are kept as Python's own.

    Raises InvalidRequest, naming the field, the value, the limit and the remedy; for an unknown field too.
    """

    temperature: float = 1.0
    max_tokens: int = 64
    ignore_eos: bool = False
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    n: int = 1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = field(default=None, hash=False)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    cache_salt: str | None = None

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        check_keywords("SamplingParams", fields, cls.__dataclass_fields__, error=InvalidRequest)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, plain(getattr(self, name)))
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        for name, value in (("stop", stop), ("stop_token_ids", self.stop_token_ids or ()),
                            ("allowed_token_ids", self.allowed_token_ids), ("bad_words", self.bad_words or ()),
                            ("bad_words_ids", self.bad_words_ids or ())):
            if value is not None:
                check_request(isinstance(value, (list, tuple, set, frozenset)), name, value, "a list", "pass a list")
                object.__setattr__(self, name, tuple(map(plain, value)))
        if self.logit_bias is not None:
            check_request(isinstance(self.logit_bias, Mapping), "logit_bias", self.logit_bias, "a dict from token id to number",
                          "pass {token_id: bias}")
            bias = {plain(token): plain(value) for token, value in self.logit_bias.items()}
            object.__setattr__(self, "logit_bias", bias or None)
        # By name: autoreload gives what was made before its file was edited another class.
        shape = self.structured_outputs
        check_request(shape is None or type(shape).__name__ == "StructuredOutputsParams", "structured_outputs", shape,
                      "None or StructuredOutputsParams", "pass StructuredOutputsParams(json=...)")
        self._check_draw()
        self._check_end()
        self._check_report()
        if 0 < self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        # float32 would make 0 of it, which keeps no token at all.
        object.__setattr__(self, "top_p", max(self.top_p, FLOAT32_TINY))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalized(self) -> bool:
        """Whether the scores depend on the tokens so far."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def changes_scores(self) -> bool:
        """Whether a logits processor has work to do."""
        return (self.penalized or self.forbids_words or self.logit_bias is not None or self.min_tokens > 0
                or self.structured_outputs is not None)

    @property
    def forbids_words(self) -> bool:
        """Whether some tokens are forbidden for good, or behind others."""
        return self.allowed_token_ids is not None or bool(self.bad_words_ids)

    @property
    def filtered(self) -> bool:
        """Whether some tokens are kept out of the draw."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @cached_property  # asked in every step
    def draws_from_logits(self) -> bool:
        """Whether logits, a mask, temperature, filters and a random number are all that a draw takes; none is reported."""
        waits_for_min_tokens = self.min_tokens > 0 and self.structured_outputs is None  # else the mask says it
        return not (self.penalized or self.forbids_words or self.logit_bias is not None or waits_for_min_tokens
                    or self.logprobs is not None)

    def ending_tokens(self, eos_token_ids: Iterable[int]) -> set[int]:
        """The tokens that end this request, given the model's own."""
        return {*self.stop_token_ids, *(() if self.ignore_eos else eos_token_ids)}

    def _check_draw(self) -> None:
        check_request(is_number(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE, "temperature", self.temperature,
                      f"a number in [0, {MAX_TEMPERATURE:g}]", "use 0 for greedy decoding")
        check_request(is_int(self.top_k) and -1 <= self.top_k < 2**31, "top_k", self.top_k, "a whole number in [-1, 2**31)",
                      "use 0 to keep every token")
        check_request(is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]",
                      "use 1 to keep every token")
        check_request(is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]",
                      "use 0 to keep every token")
        check_request(self.seed is None or (is_int(self.seed) and 0 <= self.seed < 2**63), "seed", self.seed,
                      "None or a whole number in [0, 2**63)", "leave it out for unseeded draws")
        check_request(is_number(self.repetition_penalty) and 1e-6 <= self.repetition_penalty <= 1e6, "repetition_penalty",
                      self.repetition_penalty, "a finite number above 0, in [1e-6, 1e6]", "use 1 for none")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            check_request(is_number(value) and -2 <= value <= 2, name, value, "in [-2, 2]", "use 0 for none")
        for token, bias in (self.logit_bias or {}).items():
            check_request(is_int(token) and token >= 0, "logit_bias token", token, "a token id, 0 or more",
                          "pass {token_id: bias}")
            check_request(is_number(bias) and -100 <= bias <= 100, f"logit_bias[{shown(token)}]", bias, "in [-100, 100]",
                          "-100 all but forbids a token, 100 all but forces it")
        allowed = self.allowed_token_ids
        check_request(allowed is None or (len(allowed) > 0 and all(is_int(t) and t >= 0 for t in allowed)), "allowed_token_ids",
                      allowed, "None or one token id or more", "leave it out to allow every token")
        check_request(all(isinstance(word, str) and word.strip() for word in self.bad_words), "bad_words", self.bad_words,
                      "texts of at least one character that is no space", "pass a list of texts")
        words = tuple(tuple(word) if isinstance(word, (list, tuple)) else word for word in self.bad_words_ids)
        check_request(all(isinstance(word, tuple) and word and all(is_int(t) and t >= 0 for t in word) for word in words),
                      "bad_words_ids", self.bad_words_ids, "lists of one token id or more", "pass [[id, ...], ...]")
        object.__setattr__(self, "bad_words_ids", words)

    def _check_end(self) -> None:
        check_request(is_int(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens,
                      "a whole number, 1 or more", "a request generates at least one token")
        check_request(is_int(self.min_tokens) and 0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens,
                      f"a whole number from 0 to max_tokens={shown(self.max_tokens)}", "lower it or raise max_tokens")
        check_request(all(is_int(t) and t >= 0 for t in self.stop_token_ids), "stop_token_ids", self.stop_token_ids,
                      "token ids, 0 or more", "pass a list of ints")
        check_request(all(isinstance(s, str) and s for s in self.stop), "stop", self.stop, "texts of at least one character",
                      "pass a text or a list of texts")
        check_request(self.cache_salt is None or (isinstance(self.cache_salt, str) and self.cache_salt != ""), "cache_salt",
                      self.cache_salt, "None or a text of at least one character", "leave it out to share with everybody")
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            check_request(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False", "pass a bool")

    def _check_report(self) -> None:
        check_request(is_int(self.n) and 1 <= self.n <= MAX_SAMPLES, "n", self.n,
                      f"a whole number, 1 or more, {MAX_SAMPLES} at most", "use 1 for one sample")
        check_request(self.n == 1 or self.temperature >= MIN_TEMPERATURE, "n", self.n, "1 with temperature 0",
                      "greedy samples are all alike: raise temperature or ask for one")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            check_request(value is None or (is_int(value) and 0 <= value <= MAX_LOGPROBS), name, value,
                          f"None or a whole number from 0 to {MAX_LOGPROBS}", "ask for fewer")
