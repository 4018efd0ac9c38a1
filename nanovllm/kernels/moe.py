"""The experts of a feed-forward network in one grouped product: every token's rows go to the experts that it chose.

A pair is a token and one of its experts; pair number token * num_active + choice. Pairs are put in the order of their
experts, and that order is cut into blocks of rows of one expert each, which a program multiplies with a tile of that
expert's weight (as in MegaBlocks, Gale et al. 2022). How many blocks an expert gets is known to the device alone, and the
launch has programs for the most there can be: shapes stay the same whatever the tokens choose, as a CUDA graph needs.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.silu_and_mul import silu


class Tile(NamedTuple):
    """What one program computes: rows of pairs times features, `depth` inputs per step of its loop."""

    rows: int
    features: int
    depth: int


FEW, MANY = Tile(16, 32, 128), Tile(128, 64, 64)  # up to so many pairs per expert, and beyond
FEW_PAIRS = 32


@triton.jit
def _route_kernel(experts_ptr: tl.tensor, weights_ptr: tl.tensor, logits_ptr: tl.tensor, num_experts: tl.tensor,
                  ACTIVE: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK: tl.constexpr,
                  CHOICES: tl.constexpr) -> None:  # fmt: skip
    """One program takes one token. BLOCK, CHOICES: num_experts and ACTIVE, rounded up to powers of two."""
    token = tl.program_id(0).to(tl.int64)
    i, choice = tl.arange(0, BLOCK), tl.arange(0, CHOICES)
    logits = tl.load(logits_ptr + token * num_experts + i, mask=i < num_experts, other=float("-inf")).to(tl.float32)
    likely = tl.exp(logits - tl.max(logits, 0))
    likely = likely / tl.sum(likely, 0)
    chosen, weights = tl.zeros([CHOICES], tl.int32), tl.zeros([CHOICES], tl.float32)
    for k in tl.static_range(ACTIVE):
        best = tl.argmax(likely, 0)
        chosen = tl.where(choice == k, best, chosen)
        weights = tl.where(choice == k, tl.max(likely, 0), weights)
        likely = tl.where(i == best, -1.0, likely)
    if NORMALIZE:
        weights = weights / tl.sum(weights, 0)
    offsets = token * ACTIVE + choice
    tl.store(experts_ptr + offsets, chosen, mask=choice < ACTIVE)
    tl.store(weights_ptr + offsets, weights.to(weights_ptr.dtype.element_ty), mask=choice < ACTIVE)


@triton.jit(do_not_specialize=["num_pairs"])
def _group_kernel(pairs_ptr: tl.tensor, starts_ptr: tl.tensor, experts_ptr: tl.tensor, num_pairs: tl.tensor,
                  BLOCK: tl.constexpr) -> None:
    """One program takes one expert, counts the pairs of those before it, and writes its own behind them, in their order."""
    expert = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    earlier = tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_pairs, BLOCK):
        found = tl.load(experts_ptr + first + i, mask=first + i < num_pairs, other=1 << 30)
        earlier += (found < expert).to(tl.int32)
    start = tl.sum(earlier, 0)
    tl.store(starts_ptr + expert, start)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, num_pairs)
    for first in range(0, num_pairs, BLOCK):
        found = tl.load(experts_ptr + first + i, mask=first + i < num_pairs, other=1 << 30)
        is_expert = (found == expert).to(tl.int32)
        tl.store(pairs_ptr + start + tl.cumsum(is_expert, 0) - 1, first + i, mask=is_expert == 1)
        start += tl.sum(is_expert, 0)


@triton.jit
def _block_of_rows(block: tl.tensor, starts_ptr: tl.tensor, num_experts: tl.tensor, EXPERTS: tl.constexpr,
                   ROWS: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(expert, first row, end of its rows) of a block; an expert that there is not when there are fewer blocks.

    EXPERTS: num_experts, rounded up to a power of two.
    """
    e = tl.arange(0, EXPERTS)
    starts = tl.load(starts_ptr + e, mask=e < num_experts, other=0)
    ends = tl.load(starts_ptr + 1 + e, mask=e < num_experts, other=0)
    last_block = tl.cumsum(tl.cdiv(ends - starts, ROWS), 0)
    done = last_block <= block
    expert = tl.sum(done.to(tl.int32), 0)
    first = tl.sum(tl.where(e == expert, starts, 0), 0) + (block - tl.max(tl.where(done, last_block, 0), 0)) * ROWS
    return expert, first, tl.sum(tl.where(e == expert, ends, 0), 0)


@triton.jit
def _gate_up_kernel(
    out_ptr: tl.tensor, x_ptr: tl.tensor, weight_ptr: tl.tensor, pairs_ptr: tl.tensor, starts_ptr: tl.tensor,
    num_experts: tl.tensor, in_features: tl.tensor, out_features: tl.tensor, ACTIVE: tl.constexpr,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """Program (tile of features, block of rows): silu(gate) * up of a block's tokens, in the order of the experts."""
    expert, first, end = _block_of_rows(tl.program_id(1), starts_ptr, num_experts, EXPERTS, ROWS)
    if expert < num_experts:
        row, feature, i = first + tl.arange(0, ROWS), tl.program_id(0) * FEATURES + tl.arange(0, FEATURES), tl.arange(0, DEPTH)
        inside, wanted = row < end, feature < out_features
        token = (tl.load(pairs_ptr + row, mask=inside, other=0) // ACTIVE).to(tl.int64)
        x_ptrs = x_ptr + token[:, None] * in_features + i[None, :]
        gate_ptr = weight_ptr + expert.to(tl.int64) * (2 * out_features) * in_features
        w_ptrs = gate_ptr + feature[None, :].to(tl.int64) * in_features + i[:, None]
        gate, up = tl.zeros([ROWS, FEATURES], tl.float32), tl.zeros([ROWS, FEATURES], tl.float32)
        for k in range(0, in_features, DEPTH):
            there = i + k < in_features
            x = tl.load(x_ptrs + k, mask=inside[:, None] & there[None, :], other=0.0)
            w_mask = wanted[None, :] & there[:, None]
            gate = tl.dot(x, tl.load(w_ptrs + k, mask=w_mask, other=0.0), gate, input_precision="ieee")
            w = tl.load(w_ptrs + out_features.to(tl.int64) * in_features + k, mask=w_mask, other=0.0)
            up = tl.dot(x, w, up, input_precision="ieee")
        dtype = out_ptr.dtype.element_ty
        out_ptrs = out_ptr + row.to(tl.int64)[:, None] * out_features + feature[None, :]
        tl.store(out_ptrs, silu(gate.to(dtype)) * up.to(dtype), mask=inside[:, None] & wanted[None, :])


@triton.jit
def _down_kernel(
    out_ptr: tl.tensor, x_ptr: tl.tensor, weight_ptr: tl.tensor, scale_ptr: tl.tensor, pairs_ptr: tl.tensor,
    starts_ptr: tl.tensor, num_experts: tl.tensor, in_features: tl.tensor, out_features: tl.tensor,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """As `_gate_up_kernel`, of rows in the order of the experts; each goes, times its weight, to its pair's place."""
    expert, first, end = _block_of_rows(tl.program_id(1), starts_ptr, num_experts, EXPERTS, ROWS)
    if expert < num_experts:
        row, feature, i = first + tl.arange(0, ROWS), tl.program_id(0) * FEATURES + tl.arange(0, FEATURES), tl.arange(0, DEPTH)
        inside, wanted = row < end, feature < out_features
        x_ptrs = x_ptr + row.to(tl.int64)[:, None] * in_features + i[None, :]
        expert_ptr = weight_ptr + expert.to(tl.int64) * out_features * in_features
        w_ptrs = expert_ptr + feature[None, :].to(tl.int64) * in_features + i[:, None]
        acc = tl.zeros([ROWS, FEATURES], tl.float32)
        for k in range(0, in_features, DEPTH):
            there = i + k < in_features
            x = tl.load(x_ptrs + k, mask=inside[:, None] & there[None, :], other=0.0)
            w = tl.load(w_ptrs + k, mask=wanted[None, :] & there[:, None], other=0.0)
            acc = tl.dot(x, w, acc, input_precision="ieee")
        pair = tl.load(pairs_ptr + row, mask=inside, other=0).to(tl.int64)
        acc = acc * tl.load(scale_ptr + pair, mask=inside, other=0.0).to(tl.float32)[:, None]
        out_ptrs = out_ptr + pair[:, None] * out_features + feature[None, :]
        tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None] & wanted[None, :])


@triton.jit
def _sum_kernel(out_ptr: tl.tensor, x_ptr: tl.tensor, size: tl.tensor, ACTIVE: tl.constexpr, ADD: tl.constexpr,
                BLOCK: tl.constexpr) -> None:
    """Program (token, piece of the row): what its experts say, added up; ADD: to what stands there."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(ACTIVE):
        total += tl.load(x_ptr + (token * ACTIVE + k) * size + i, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        total += tl.load(out_ptr + token * size + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * size + i, total.to(out_ptr.dtype.element_ty), mask=inside)


def route(logits: Tensor, num_active: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """As `layers.moe.route`, with experts in int32; of equal ones the first is taken."""
    num_tokens, num_experts = logits.shape
    experts = torch.empty(num_tokens, num_active, dtype=torch.int32, device=logits.device)
    weights = torch.empty(num_tokens, num_active, dtype=logits.dtype, device=logits.device)
    _route_kernel[(num_tokens,)](
        experts, weights, logits, num_experts, ACTIVE=num_active, NORMALIZE=normalize,
        BLOCK=triton.next_power_of_2(num_experts), CHOICES=triton.next_power_of_2(num_active), num_warps=1,
    )  # fmt: skip
    return experts, weights


def grouped_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, add_to: Tensor | None = None
                    ) -> Tensor:  # fmt: skip
    """What `layers.moe.Experts.forward` computes, before the sum over ranks.

    x: `[num_tokens, hidden_size]`; experts: `[num_tokens, num_active]` int32, and weights, from `route`; gate_up:
    `[num_experts, 2 * size, hidden_size]`; down: `[num_experts, hidden_size, size]`; all contiguous. add_to: like x; the
    result is added to it, in place. Returns the result, like x.
    """
    (num_tokens, num_active), (num_experts, hidden_size, size) = experts.shape, down.shape
    num_pairs = num_tokens * num_active
    pairs = torch.empty(num_pairs, dtype=torch.int32, device=x.device)
    starts = torch.empty(num_experts + 1, dtype=torch.int32, device=x.device)
    _group_kernel[(num_experts,)](pairs, starts, experts, num_pairs, BLOCK=1024, num_warps=4)
    few = num_pairs <= FEW_PAIRS * num_experts
    rows, features, depth = FEW if few else MANY
    blocks = min(num_pairs, triton.cdiv(num_pairs, rows) + num_experts)  # each has a row, and each expert wastes one at most
    options = dict(EXPERTS=triton.next_power_of_2(num_experts), ROWS=rows, FEATURES=features, DEPTH=depth, num_warps=4,
                   num_stages=3)  # fmt: skip
    inner, out = x.new_empty(num_pairs, size), x.new_empty(num_pairs, hidden_size)
    _gate_up_kernel[(triton.cdiv(size, features), blocks)](
        inner, x, gate_up, pairs, starts, num_experts, hidden_size, size, ACTIVE=num_active, **options)
    _down_kernel[(triton.cdiv(hidden_size, features), blocks)](
        out, inner, down, weights, pairs, starts, num_experts, size, hidden_size, **options)
    total, block = torch.empty_like(x) if add_to is None else add_to, min(1024, triton.next_power_of_2(hidden_size))
    _sum_kernel[(num_tokens, triton.cdiv(hidden_size, block))](
        total, out, hidden_size, ACTIVE=num_active, ADD=add_to is not None, BLOCK=block, num_warps=4)
    return total
