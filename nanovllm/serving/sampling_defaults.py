"""What a request draws with when it does not say: the model's own recommendation, or nothing in particular."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.errors import CheckpointError
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checkpoint import read_json
from nanovllm.utils.checks import check

SOURCES = ("auto", "vllm")
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def room_after(engine: LLMEngine, num_prompt_tokens: int) -> int:
    """How many tokens may follow a prompt, 1 at least; the last one needs no place in the cache."""
    blocks = engine.block_manager
    longest = min(engine.config.max_model_len, blocks.num_blocks * blocks.block_size + 1)
    return max(1, longest - num_prompt_tokens)


@dataclass(frozen=True)
class SamplingDefaults:
    """Values of SamplingParams for what a request leaves out. Immutable.

    max_tokens: most tokens that any request generates, whatever it asks for; None sets no limit.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None

    @classmethod
    def of_model(cls, model: Path, source: str = "auto") -> "SamplingDefaults":
        """What the model's generation_config.json recommends, as in vLLM.

        source: "auto" reads the file, when there is one; "vllm" leaves the defaults of SamplingParams.
        Raises CheckpointError when the file cannot be read or holds what cannot be served.
        """
        check(source in SOURCES, "generation_config", source, f"one of {SOURCES}", "use 'vllm' to ignore the model's file")
        file = model / "generation_config.json"
        if source == "vllm" or not file.is_file():
            return cls()
        recommended = read_json(file)
        try:
            values = {name: recommended[name] for name in RECOMMENDED if recommended.get(name) is not None}
            max_tokens = recommended.get("max_new_tokens")
            SamplingParams(**values, **{} if max_tokens is None else {"max_tokens": max_tokens})
        except ValueError as error:
            raise CheckpointError(f"{file}: {error} Correct the file, pass SamplingParams, or serve with "
                                  "--generation-config vllm.") from error
        return cls(values, max_tokens)

    def sampling_params(self) -> SamplingParams:
        """The parameters of a request that says nothing."""
        most: dict[str, Any] = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return SamplingParams(**self.values, **most)

    def __str__(self) -> str:
        stated = [f"{name} {value:g}" for name, value in self.values.items()]
        if self.max_tokens is not None:
            stated.append(f"at most {self.max_tokens} tokens")
        return ", ".join(stated)
