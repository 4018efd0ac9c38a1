"""The least time a step can take: what it must read over the memory's speed, or compute over the arithmetic's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ceilings:
    """Measured on the machine itself. read, copy: bytes/s of device memory (copy counts both ways). matmul: bf16 FLOP/s."""

    read: float
    copy: float
    matmul: float

    @classmethod
    def measure(cls) -> "Ceilings":
        source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda").random_()
        words = source.view(torch.int64)
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        return cls(read=source.numel() / seconds(words.max), copy=2 * source.numel() / seconds(source.clone),
                   matmul=2 * 8192**3 / seconds(lambda: a @ b))


def seconds(call: Callable[[], object], repeat: int = 10) -> float:
    """Median time of a call on the GPU."""
    for _ in range(3):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeat)]
    for start, end in marks:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times: list[float] = sorted(start.elapsed_time(end) for start, end in marks)
    return times[repeat // 2] * 1e-3


@dataclass(frozen=True)
class Work:
    """Bytes that must be read and operations that must be done, in bf16."""

    bytes: float
    flops: float

    def floor(self, ceilings: Ceilings) -> float:
        return max(self.bytes / ceilings.read, self.flops / ceilings.matmul)


def step_work(shape: Any, num_tokens: int, num_logits: int, keys: int, pairs: int) -> dict[str, Work]:
    """What one step of a Qwen3 must do, by kind. shape: its config. keys: keys and values read from the cache, in tokens
    of all sequences. pairs: (query, key) pairs attended to."""
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    layer = shape.hidden_size * (2 * q + 2 * kv + 3 * shape.intermediate_size)
    layers, head = layer * shape.num_hidden_layers, shape.hidden_size * shape.vocab_size
    return {
        "layer matmuls": Work(2 * layers, 2 * layers * num_tokens),
        "LM head": Work(2 * head, 2 * head * num_logits),
        "attention": Work(shape.num_hidden_layers * 4 * kv * keys, shape.num_hidden_layers * 4 * q * pairs),
        "sampler": Work(2 * shape.vocab_size * num_logits, 0),
    }


def decode_work(shape: Any, contexts: list[int]) -> dict[str, Work]:
    return step_work(shape, len(contexts), len(contexts), sum(contexts), sum(contexts))
