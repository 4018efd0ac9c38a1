"""How long a step takes on a GPU, from what was recorded there. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.utils.checks import check


@dataclass(frozen=True, slots=True)
class CostModel:
    """The seconds of one step of one engine; calling it with a `ScheduledBatch` adds up its parts.

        fixed part + key_s · (cached tokens read by decoding sequences) + prompt_token_s · (prompt tokens computed)

    single_s, batch_s: the fixed part, mostly reading the weights, with 1 sequence and with `batch_from` or more; between
        them it grows linearly.
    prompt_step_s: least time of a step with a prompt, which is launched kernel by kernel instead of replayed from a graph.
    kv_bytes: bytes of keys and values per token, which a transfer to another engine moves.
    num_blocks, block_size: the KV cache of that engine.

    It leaves out what the recorded steps do not show: the host's time where the engine does not hide it, and attention's
    quadratic part in prompts much longer than those recorded (1024 tokens).
    """

    single_s: float
    batch_s: float
    batch_from: int
    key_s: float
    prompt_token_s: float
    prompt_step_s: float
    kv_bytes: int
    num_blocks: int
    block_size: int = 256

    def __call__(self, batch: ScheduledBatch) -> float:
        num_decodes = num_keys = num_prompt_tokens = 0
        for item in batch.items:
            if item.num_tokens == 1:
                num_decodes += 1
                num_keys += item.start + 1
            else:
                num_prompt_tokens += item.num_tokens
        return self.seconds(num_decodes, num_keys, num_prompt_tokens)

    def seconds(self, num_decodes: int, num_keys: int, num_prompt_tokens: int) -> float:
        """Of a step that decodes `num_decodes` sequences with `num_keys` cached tokens in all, and computes prompt tokens."""
        share = 1.0 if num_prompt_tokens else min(1.0, max(0, num_decodes - 1) / max(1, self.batch_from - 1))
        total = self.single_s + share * (self.batch_s - self.single_s)
        total += self.key_s * num_keys + self.prompt_token_s * num_prompt_tokens
        return max(total, self.prompt_step_s) if num_prompt_tokens else total

    @classmethod
    def fit(cls, results: Mapping[str, Any]) -> "CostModel":
        """From a results file of `python -m benchmarks gpu`: its sections "decode step", "prefill, watched", "one" and
        "memory".

        The key's cost and the fixed part of a batch are the straight line with the least relative error through the decode
        steps of more than one sequence. Raises ValueError when the file lacks a section, or has fewer than two such steps.
        """
        for section in ("decode step", "prefill, watched", "one", "memory"):
            check(section in results, "section", section, f"in the results file, which has {', '.join(results)}",
                  "measure it: python -m benchmarks gpu")
        steps = decode_steps(results)
        batches = [step for step in steps if step[0] > 1]
        check(len(batches) >= 2, "decode steps of several sequences", len(batches), "2 or more", "measure more of them")
        seconds = np.array([step[2] for step in batches])
        parts = np.array([[1.0, keys] for _, keys, _ in batches])
        (batch_s, key_s), *_ = np.linalg.lstsq(parts / seconds[:, None], np.ones(len(seconds)), rcond=None)
        singles = [step[2] - key_s * step[1] for step in steps if step[0] == 1]
        prefill, one, memory = results["prefill, watched"], results["one"], results["memory"]
        num_out = int(str(one["requests"]).split()[-2])
        return cls(
            single_s=float(singles[0]) if singles else float(batch_s), batch_s=float(batch_s),
            batch_from=min(step[0] for step in batches), key_s=float(key_s),
            prompt_token_s=float((prefill["gpu ms a step"] / 1e3 - batch_s) / results["prefill step"]["tokens"]),
            prompt_step_s=(one["ms/token"] * num_out - one["ms between tokens"] * (num_out - 1)) / 1e3,
            kv_bytes=memory["bytes a token"], num_blocks=memory["blocks"],
            block_size=round(memory["cache"] / memory["blocks"] / memory["bytes a token"]))


def decode_steps(results: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """(sequences, cached tokens read, seconds) of every decode step that was recorded."""
    return [(step["sequences"], step["sequences"] * step["context"], (step["gpu ms"] + step["exposed ms, mean"]) / 1e3)
            for step in results["decode step"]]


# Qwen3-0.6B in bf16 on an NVIDIA H200: what `python -m benchmarks fleet` fits to benchmarks/results/earlier/nvidia-h200.json.
H200 = CostModel(single_s=6.593e-4, batch_s=1.2796e-3, batch_from=16, key_s=2.953e-8, prompt_token_s=1.868e-6,
                 prompt_step_s=1.03e-2, kv_bytes=114_688, num_blocks=4522)
