"""What a step must read, compute and send, counted from a model's shape: the arithmetic behind two explorers.

step_cost.js says the same for the browser, and a test holds both together. It is a floor for each part, not a prediction:
whatever else a step does (launches, norms, waits) is not in it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nanovllm.utils.checks import check


@dataclass(frozen=True)
class ModelShape:
    """The sizes that costs follow from; of a dense model with gated feed-forward networks."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * self.hidden * (attention + 3 * self.intermediate)

    @property
    def cache_numbers(self) -> int:
        """Numbers of keys and values that a token leaves in the cache."""
        return self.layers * 2 * self.kv_heads * self.head_dim


SHAPES = (ModelShape("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151_936),
          ModelShape("Qwen3-8B", 36, 4096, 12_288, 32, 8, 128, 151_936),
          ModelShape("Qwen3-32B", 64, 5120, 25_600, 64, 8, 128, 151_936))
# The first two as measured, the last a round guess: read (bytes/s), FLOP/s in bf16, one direction of its links (bytes/s).
DEVICES = {
    "H200": {"read": 4.43e12, "flops": 793e12, "link": 450e9},
    "H100": {"read": 3.11e12, "flops": 700e12, "link": 450e9},
    "laptop CPU": {"read": 40e9, "flops": 0.5e12, "link": 10e9},
}


def step_cost(shape: ModelShape, device: Mapping[str, float], *, sequences: int, context: int, tokens: int = 1,
              weight_bytes: float = 2, cache_bytes: float = 2, ranks: int = 1, latency: float = 10e-6) -> dict[str, float]:
    """{part: seconds} of a step in which each of `sequences` sequences behind `context` cached tokens computes `tokens` more.

    latency: seconds of one all-reduce before its first byte. Raises ValueError for ranks that do not divide the heads.
    """
    check(shape.heads % ranks == 0, "ranks", ranks, f"a divisor of {shape.heads} heads", "choose a size that divides it")
    n = sequences * tokens
    head = shape.hidden * shape.vocab
    pairs = n * (context + (tokens + 1) / 2)
    matrices = max(shape.layer_weights * weight_bytes / device["read"], 2 * shape.layer_weights * n / device["flops"])
    logits = max(head * weight_bytes / device["read"], 2 * head * sequences / device["flops"])
    keys = sequences * (context + tokens) * shape.cache_numbers * cache_bytes
    holders = min(ranks, shape.kv_heads)  # beyond that a kv head is held, and read, by several ranks
    products = 4 * shape.layers * shape.heads * shape.head_dim * pairs
    attention = max(keys / holders / device["read"], products / ranks / device["flops"])
    sums = 0.0
    if ranks > 1:
        sent = 2 * (ranks - 1) / ranks * n * shape.hidden * 2  # bytes that each rank sends in a ring, bf16
        sums = (2 * shape.layers + 1) * (latency + sent / device["link"])
    return {"matrices": (matrices + logits) / ranks, "attention": attention, "sums": sums}


def work_of(shape: ModelShape, *, sequences: int, context: int, tokens: int = 1, weight_bytes: float = 2,
            cache_bytes: float = 2) -> tuple[float, float]:
    """(FLOP, bytes) of the whole step on one device: what places it under a roofline."""
    n, head = sequences * tokens, shape.hidden * shape.vocab
    pairs = n * (context + (tokens + 1) / 2)
    flops = 2 * shape.layer_weights * n + 2 * head * sequences + 4 * shape.layers * shape.heads * shape.head_dim * pairs
    read = (shape.layer_weights + head) * weight_bytes + sequences * (context + tokens) * shape.cache_numbers * cache_bytes
    return flops, read


def packed(shape: ModelShape) -> dict[str, Any]:
    """A shape as the browser gets it."""
    return asdict(shape) | {"layer_weights": shape.layer_weights, "cache_numbers": shape.cache_numbers}
