"""How tokens are drafted, in the terms of vLLM's `speculative_config`, checked before anything is allocated."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nanovllm.utils.checks import check, check_keywords
from nanovllm.utils.numbers import is_int, plain

METHODS = ("ngram", "draft_model")
MOST_TOKENS, LONGEST_RUN = 16, 64
DEFAULT_RUNS = (2, 4)


@dataclass(frozen=True)
class SpeculativeConfig:
    """The settings of speculative decoding (see `nanovllm.engine.drafts`). It changes no text, only how fast it comes.

    method: "ngram" looks guesses up in the text so far; "draft_model" asks a smaller model with the same vocabulary.
        None is "draft_model" where a model is named; a drafter handed in (`LLM(drafter=...)`) needs none.
    model: the smaller model's folder.
    num_speculative_tokens: most drafts of a sequence in one step, 1 to 16. How many there are depends on how many of its
        drafts were right, on how many sequences run, and on how long steps were found to take: on a GPU those with drafts and
        those without, while they run; with attention_backend "cpu" those of one token and of some more, before the first
        request. There may be none.
    prompt_lookup_max, prompt_lookup_min: longest and shortest run of tokens to look up. One that is not given is as the
        other; neither: 4 and 2.
    disable_by_batch_size: with so many sequences running, none drafts; with fewer, a step has at most so many drafts in all.

    Raises InvalidArgument naming the setting, its value, the limit and the remedy.
    """

    method: str | None = None
    model: str | Path | None = None
    num_speculative_tokens: int = 4
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None
    disable_by_batch_size: int = 32

    @classmethod
    def of(cls, settings: "dict[str, Any] | SpeculativeConfig") -> "SpeculativeConfig":
        if isinstance(settings, SpeculativeConfig):
            return settings
        check(isinstance(settings, dict), "speculative_config", settings, "a dict",
              "pass {'method': 'ngram', 'num_speculative_tokens': 4}")
        check_keywords("speculative_config", settings, [f.name for f in fields(cls)])
        return cls(**settings)

    def __post_init__(self) -> None:
        for setting in fields(self):  # numpy's and torch's numbers, too
            object.__setattr__(self, setting.name, plain(getattr(self, setting.name)))
        if self.method is None and self.model is not None:
            object.__setattr__(self, "method", "draft_model")
        check(self.method is None or self.method in METHODS, "speculative_config['method']", self.method, f"one of {METHODS}",
              "use one of them, or hand in a drafter of your own: LLM(drafter=...)")
        check((self.model is not None) == (self.method == "draft_model"), "speculative_config['model']", self.model,
              "a folder for method 'draft_model', and left out for others", "name the smaller model's folder")
        check(self.model is None or (isinstance(self.model, (str, os.PathLike)) and str(self.model) != ""),
              "speculative_config['model']", self.model, "a folder in Hugging Face format", "name the smaller model's folder")
        _check_whole("num_speculative_tokens", self.num_speculative_tokens, 1, MOST_TOKENS)
        _check_whole("disable_by_batch_size", self.disable_by_batch_size, 1, 1 << 20)
        for name in ("prompt_lookup_max", "prompt_lookup_min"):
            if (given := getattr(self, name)) is not None:
                _check_whole(name, given, 1, LONGEST_RUN)
        shortest, longest = self.lookup_lengths
        _check_whole("prompt_lookup_min", shortest, 1, longest)

    @property
    def lookup_lengths(self) -> tuple[int, int]:
        """Shortest and longest run of tokens to look up, with what was not given filled in."""
        shortest, longest = self.prompt_lookup_min, self.prompt_lookup_max
        if shortest is None and longest is None:
            return DEFAULT_RUNS
        shortest = longest if shortest is None else shortest
        longest = shortest if longest is None else longest
        assert shortest is not None and longest is not None
        return shortest, longest


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    check(is_int(value) and least <= value <= most, f"speculative_config[{name!r}]", value,
          f"a whole number from {least} to {most}", "pass one of those")
