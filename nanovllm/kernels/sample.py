"""Drawing one token per row in one pass over the logits: Gumbel-max, whose winner needs no sum over the vocabulary."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import multiprocessors
from nanovllm.kernels.noise import gumbel, random_bits, row_key
from nanovllm.kernels.threshold import divided

MAX_SPLITS = 128


@triton.jit
def best_token(scores: tl.tensor, tokens: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The highest score and its token; of equals the first, as torch's argmax has it."""
    highest = tl.max(scores, 0)
    return highest, tl.min(tl.where(scores == highest, tokens, 0x7FFFFFFF), 0)


# How the vocabulary is split differs from batch size to batch size, which must not mean compiling again.
@triton.jit(do_not_specialize=["tiles_per_split"])
def _draw_kernel(
    tokens_ptr: tl.tensor, score_ptr: tl.tensor, logits_ptr: tl.tensor, temperatures_ptr: tl.tensor, seeds_ptr: tl.tensor,
    offsets_ptr: tl.tensor, stride_row: tl.tensor, vocab_size: tl.tensor, tiles_per_split: tl.tensor,
    TILE: tl.constexpr, FAST: tl.constexpr, MASKED: tl.constexpr,
) -> None:  # fmt: skip
    """Program (split, row): the winner of one row among one split of the vocabulary; token -1, above all, if it is unsound."""
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperatures_ptr + row)
    greedy = temperature == 0
    divisor = tl.where(greedy, 1.0, temperature)
    low, high = row_key(tl.load(seeds_ptr + row), tl.load(offsets_ptr + row))
    best = tl.full([TILE], float("-inf"), tl.float32)
    winner = tl.full([TILE], 0x7FFFFFFF, tl.int32)
    unsound = tl.zeros([TILE], tl.int32)
    start = split * tiles_per_split * TILE
    for first in range(start, tl.minimum(start + tiles_per_split * TILE, vocab_size), TILE):
        token = first + tl.arange(0, TILE)
        logits = tl.load(logits_ptr + row * stride_row + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
        sound = logits < float("inf")  # which NaN is not
        if not MASKED:
            sound &= (logits > float("-inf")) | (token >= vocab_size)
        unsound = tl.where(sound, unsound, 1)
        scores = divided(logits, divisor, FAST)
        if not greedy:
            scores += gumbel(random_bits(low, high, token), FAST)
        better = scores > best
        best = tl.where(better, scores, best)
        winner = tl.where(better, token, winner)
    score, token = best_token(best, winner)
    broken = tl.max(unsound, 0) == 1
    score, token = tl.where(broken, float("inf"), score), tl.where(broken, -1, token)
    index = row * tl.num_programs(0) + split
    tl.store(score_ptr + index, score)
    tl.store(tokens_ptr + index, token)


@triton.jit(do_not_specialize=["splits"])
def _final_kernel(out_ptr: tl.tensor, tokens_ptr: tl.tensor, score_ptr: tl.tensor, splits: tl.tensor,
                  BLOCK: tl.constexpr) -> None:
    """Program (row): the winner of the splits' winners."""
    row, split = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = split < splits
    scores = tl.load(score_ptr + row * splits + split, mask=inside, other=float("-inf"))
    tokens = tl.load(tokens_ptr + row * splits + split, mask=inside, other=0x7FFFFFFF)
    score, token = best_token(scores, tokens)
    tl.store(out_ptr + row, tl.where(score > float("-inf"), token, -1).to(tl.int64))


def draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, masked: bool = False,
         splits: int | None = None, tile: int = 2048) -> Tensor:  # fmt: skip
    """What `layers.sampler.draw` says, in one read of the logits.

    logits: `[num_rows, vocab_size]`, any float dtype, last dimension contiguous. temperatures: `[num_rows]` float32, 0
    is greedy. seeds, offsets: `[num_rows]` int64. Returns `[num_rows]` int64: -1 for a row that holds a NaN, +inf, -inf
    unless it is masked, or no number above -inf. Rounded as `kernels.filtered_draw` rounds, which goes on from these tokens.
    """
    num_rows, vocab_size = logits.shape
    tiles = triton.cdiv(vocab_size, tile)
    if splits is None:
        splits = max(1, min(8 * multiprocessors(logits.device) // num_rows, MAX_SPLITS))
    tiles_per_split = triton.cdiv(tiles, min(splits, tiles, MAX_SPLITS))
    splits = triton.cdiv(tiles, tiles_per_split)
    tokens = torch.empty(num_rows, splits, dtype=torch.int32, device=logits.device)
    scores = torch.empty(num_rows, splits, dtype=torch.float32, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _draw_kernel[(splits, num_rows)](
        tokens, scores, logits, temperatures, seeds, offsets, logits.stride(0), vocab_size, tiles_per_split,
        TILE=tile, FAST=logits.is_cuda, MASKED=masked, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    _final_kernel[(num_rows,)](out, tokens, scores, splits, BLOCK=MAX_SPLITS, num_warps=1)
    return out
