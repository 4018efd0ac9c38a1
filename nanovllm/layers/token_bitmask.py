"""One bit per token: which tokens a row may draw. `kernels/token_bitmask.py` reads the bits without spreading them out."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CHUNK_ROWS = 64  # a row's bits take 32 times their memory while they are spread out


class ApplyBitmask(Protocol):
    """`apply_bitmask`, or its twin in `kernels/token_bitmask.py`."""

    def __call__(self, scores: Tensor, rows: Tensor, bits: Tensor) -> None: ...


def apply_bitmask(scores: Tensor, rows: Tensor, bits: Tensor) -> None:
    """Set to -inf, in place, what its bits do not allow a row to draw.

    scores: [num_rows, vocab_size] float32. rows: [num_masked] int64, which of its rows are masked, each once. bits:
    [num_masked, ceil(vocab_size / 32)] int32; token 32 w + i is bit i of word w.
    """
    positions = torch.arange(32, dtype=torch.int32, device=bits.device)
    for start in range(0, len(rows), CHUNK_ROWS):
        some = rows[start:start + CHUNK_ROWS]
        allowed = (bits[start:start + CHUNK_ROWS, :, None] >> positions & 1).flatten(1)[:, :scores.shape[-1]].bool()
        scores[some] = scores[some].masked_fill(~allowed, float("-inf"))


@dataclass
class TokenBitmask:
    """The masks of one step, on its device; see `apply_bitmask`."""

    rows: Tensor
    bits: Tensor
    apply: ApplyBitmask = apply_bitmask
