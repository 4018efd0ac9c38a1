"""What a request asks for: how to draw its tokens and when to stop."""

from dataclasses import dataclass

from nanovllm.utils.checks import check, check_keywords


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request draws its tokens and when it ends. Immutable: one object may serve many requests.

    temperature: 0 is greedy; otherwise logits are divided by it before the draw.
    top_k: keep the k most likely tokens; 0 or -1 keeps all.
    top_p: keep the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2019, "nucleus").
    min_p: drop tokens less likely than min_p times the most likely one (Nguyen et al. 2024).
    seed: fixes the draws of this request, whatever else is in its batch; None shares the engine's generator.
    max_tokens: most tokens to generate. ignore_eos: do not end at the model's end-of-sequence tokens.
    stop_token_ids: further tokens that end the request, with `finish_reason` "stop".

    Raises ValueError, naming the field, the value, the limit and the remedy; for an unknown field too.
    """

    temperature: float = 1.0
    max_tokens: int = 64
    ignore_eos: bool = False
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()

    def __new__(cls, *args, **fields):
        check_keywords("SamplingParams", fields, cls.__dataclass_fields__)
        return object.__new__(cls)

    def __post_init__(self):
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        check(_is_number(self.temperature) and 0 <= self.temperature < float("inf"), "temperature", self.temperature,
              "a finite number, 0 or more", "use 0 for greedy decoding")
        check(_is_int(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens,
              "a whole number, 1 or more", "a request generates at least one token")
        check(_is_int(self.top_k) and self.top_k >= -1, "top_k", self.top_k, "a whole number, -1 or more",
              "use 0 to keep every token")
        check(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]", "use 1 to keep every token")
        check(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]", "use 0 to keep every token")
        check(self.seed is None or _is_int(self.seed) and 0 <= self.seed < 2**63, "seed", self.seed,
              "None or a whole number in [0, 2**63)", "leave it out for unseeded draws")
        check(isinstance(self.ignore_eos, bool), "ignore_eos", self.ignore_eos, "True or False", "pass a bool")
        check(all(_is_int(t) and t >= 0 for t in self.stop_token_ids), "stop_token_ids", self.stop_token_ids,
              "token ids, 0 or more", "pass a list of ints")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
