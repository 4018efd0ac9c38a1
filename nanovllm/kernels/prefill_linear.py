"""The projections of long prompts, with all that stands behind them done before their result leaves the chip.

A product of thousands of tokens is bound by arithmetic, and cuBLAS does it at nine tenths of the peak; what costs the rest
of a prefill step is to write its result to memory and read it again, for a norm, a rotation, a gate. These kernels keep
the tile that a program has just computed in registers and finish it there. They multiply slower than cuBLAS and win by
what they do not move (benchmarks/NOTES.md). A tile is one head wide, so that a head's norm needs no other program.

The operands come through the tensor memory accelerator (Hopper and later), which copies a tile at a single instruction.
The norm before a projection is 1 / rms of a token's row times weights, and those are folded into the projection (see
`models/fused.py`): `inverse_rms` computes the first, once for all tiles of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nanovllm.kernels.rms_norm import rms_scale
from nanovllm.kernels.silu_and_mul import silu

DEPTH = 64  # inputs per step of the loop
TOKENS = 128  # of one tile: two programs fit on a multiprocessor, and one multiplies while the other finishes its tile
FEATURES = 64  # gates, and as many ups, of one tile
ROWS_IN_TURN = 8  # tiles of tokens that are worked on side by side, so that their weights are read from the cache


# How many tokens there are changes from step to step, which must not mean compiling again.
@triton.jit(do_not_specialize=["num_tokens"])
def _inverse_rms_kernel(out_ptr: tl.tensor, x_ptr: tl.tensor, num_tokens: tl.tensor, size: tl.tensor, eps: tl.tensor,
                        ROWS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """One program takes ROWS rows."""
    token, i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = token < num_tokens
    x = tl.load(x_ptr + token[:, None] * size + i[None, :], mask=inside[:, None] & (i < size)[None, :], other=0.0)
    tl.store(out_ptr + token, rms_scale(x.to(tl.float32), size, eps), mask=inside)


@triton.jit
def _tile_position(tile: tl.tensor, tiles_m: tl.tensor, tiles_n: tl.tensor, TURN: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where a tile lies, in tiles: TURN rows of tiles, column by column, before the next TURN rows."""
    turn = tile // (TURN * tiles_n)
    rows = tl.minimum(tiles_m - turn * TURN, TURN)
    within = tile % (TURN * tiles_n)
    return turn * TURN + within % rows, within // rows


@triton.jit(do_not_specialize=["num_tokens"])
def _gate_kernel(
    out_ptr: tl.tensor, x_desc: tl.tensor_descriptor, weight_desc: tl.tensor_descriptor, scale_ptr: tl.tensor,
    num_tokens: tl.tensor, in_features: tl.tensor, out_features: tl.tensor,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr, TURN: tl.constexpr,
) -> None:  # fmt: skip
    """One program computes TOKENS x FEATURES outputs: as many of gate, as many of up, and the one times the other."""
    row, column = _tile_position(tl.program_id(0), tl.cdiv(num_tokens, TOKENS), out_features // FEATURES, TURN)
    gate = tl.zeros([TOKENS, FEATURES], tl.float32)
    up = tl.zeros([TOKENS, FEATURES], tl.float32)
    for k in tl.range(0, in_features, DEPTH):
        x = x_desc.load([row * TOKENS, k])
        gate = tl.dot(x, weight_desc.load([column * FEATURES, k]).T, gate, input_precision="ieee")
        up = tl.dot(x, weight_desc.load([out_features + column * FEATURES, k]).T, up, input_precision="ieee")
    token, feature = row * TOKENS + tl.arange(0, TOKENS), column * FEATURES + tl.arange(0, FEATURES)
    inside = token < num_tokens
    scale = tl.load(scale_ptr + token, mask=inside, other=0.0)[:, None]
    dtype = out_ptr.dtype.element_ty
    out = silu((gate * scale).to(dtype)) * (up * scale).to(dtype)
    tl.store(out_ptr + token.to(tl.int64)[:, None] * out_features + feature[None, :], out, mask=inside[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def _qkv_kernel(
    q_ptr: tl.tensor, k_cache_ptr: tl.tensor, v_cache_ptr: tl.tensor, x_desc: tl.tensor_descriptor,
    weight_desc: tl.tensor_descriptor, scale_ptr: tl.tensor, positions_ptr: tl.tensor, slots_ptr: tl.tensor,
    cos_ptr: tl.tensor, sin_ptr: tl.tensor, q_weight_ptr: tl.tensor, k_weight_ptr: tl.tensor, bias_ptr: tl.tensor,
    num_tokens: tl.tensor, in_features: tl.tensor, eps: tl.tensor,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr, DEPTH: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
) -> None:  # fmt: skip
    """One program computes one head of TOKENS tokens: a query, a key or a value."""
    HALF: tl.constexpr = HEAD_DIM // 2
    dtype = q_ptr.dtype.element_ty
    row, head = _tile_position(tl.program_id(0), tl.cdiv(num_tokens, TOKENS), NUM_HEADS + 2 * NUM_KV_HEADS, TURN)
    acc = tl.zeros([TOKENS, HEAD_DIM], tl.float32)
    for k in tl.range(0, in_features, DEPTH):
        acc = tl.dot(x_desc.load([row * TOKENS, k]), weight_desc.load([head * HEAD_DIM, k]).T, acc, input_precision="ieee")
    token, dim, half = row * TOKENS + tl.arange(0, TOKENS), tl.arange(0, HEAD_DIM), tl.arange(0, HALF)
    inside = token < num_tokens
    acc = acc * tl.load(scale_ptr + token, mask=inside, other=0.0)[:, None]
    if BIAS:
        acc += tl.load(bias_ptr + head * HEAD_DIM + dim).to(tl.float32)[None, :]
    slot = tl.load(slots_ptr + token, mask=inside, other=-1)
    stored = (slot >= 0)[:, None]
    slot_offset = slot[:, None] * (NUM_KV_HEADS * HEAD_DIM) + head % NUM_KV_HEADS * HEAD_DIM  # NUM_HEADS is a multiple
    if head < NUM_HEADS + NUM_KV_HEADS:
        if NORM:
            weight_ptr = q_weight_ptr if head < NUM_HEADS else k_weight_ptr
            acc = ((acc * rms_scale(acc, HEAD_DIM, eps)[:, None]).to(dtype) * tl.load(weight_ptr + dim)[None, :]).to(tl.float32)
        first, second = acc.reshape(TOKENS, 2, HALF).permute(0, 2, 1).split()
        position = tl.load(positions_ptr + token, mask=inside, other=0)
        angles = position[:, None] * HALF + half[None, :]
        cos, sin = tl.load(cos_ptr + angles), tl.load(sin_ptr + angles)
        turned1, turned2 = (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype)
        if head < NUM_HEADS:
            q_ptrs = q_ptr + (token.to(tl.int64) * NUM_HEADS + head)[:, None] * HEAD_DIM + half[None, :]
            tl.store(q_ptrs, turned1, mask=inside[:, None])
            tl.store(q_ptrs + HALF, turned2, mask=inside[:, None])
        else:
            tl.store(k_cache_ptr + slot_offset + half[None, :], turned1, mask=stored)
            tl.store(k_cache_ptr + slot_offset + HALF + half[None, :], turned2, mask=stored)
    else:
        tl.store(v_cache_ptr + slot_offset + dim[None, :], acc.to(dtype), mask=stored)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms of each row: x `[num_tokens, size]`, contiguous -> `[num_tokens]` float32."""
    out = torch.empty(len(x), dtype=torch.float32, device=x.device)
    rows, block = 4, triton.next_power_of_2(x.shape[1])
    _inverse_rms_kernel[(triton.cdiv(len(x), rows),)](out, x, len(x), x.shape[1], eps, ROWS=rows, BLOCK=block, num_warps=4)
    return out


def gated_linear(x: Tensor, weight: Tensor, scale: Tensor, tokens: int = TOKENS, features: int = FEATURES) -> Tensor:
    """silu(gate) * up, where gate and up are the two halves of scale * (x Wᵀ).

    x: `[num_tokens, in_features]`; weight: `[2 * out_features, in_features]`; both contiguous, in_features a multiple of
    DEPTH, out_features of `features`. scale: `[num_tokens]` float32. Returns `[num_tokens, out_features]`.
    """
    (num_tokens, in_features), out_features = x.shape, len(weight) // 2
    out = x.new_empty(num_tokens, out_features)
    _gate_kernel[(triton.cdiv(num_tokens, tokens) * (out_features // features),)](
        out, TensorDescriptor.from_tensor(x, [tokens, DEPTH]), TensorDescriptor.from_tensor(weight, [features, DEPTH]), scale,
        num_tokens, in_features, out_features, TOKENS=tokens, FEATURES=features, DEPTH=DEPTH, TURN=ROWS_IN_TURN,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def qkv_linear(
    x: Tensor, weight: Tensor, scale: Tensor, positions: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
    cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor, bias: Tensor | None = None,
    tokens: int = TOKENS,
) -> Tensor:  # fmt: skip
    """As `norm_rope_store` of scale * (x Wᵀ): the queries come back, keys and values go to their slots.

    x: `[num_tokens, in_features]`; weight: `[(num_heads + 2 * num_kv_heads) * head_dim, in_features]`; both contiguous,
    in_features a multiple of DEPTH, head_dim a power of two. scale: `[num_tokens]` float32. The others as there.
    Returns `[num_tokens, num_heads, head_dim]`.
    """
    num_tokens, in_features = x.shape
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_heads = len(weight) // head_dim - 2 * num_kv_heads
    q = x.new_empty(num_tokens, num_heads, head_dim)
    _qkv_kernel[(triton.cdiv(num_tokens, tokens) * (num_heads + 2 * num_kv_heads),)](
        q, k_cache, v_cache, TensorDescriptor.from_tensor(x, [tokens, DEPTH]),
        TensorDescriptor.from_tensor(weight, [head_dim, DEPTH]), scale, positions, slot_mapping, cos, sin,
        q if q_weight is None else q_weight, q if k_weight is None else k_weight, q if bias is None else bias,
        num_tokens, in_features, eps, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, TOKENS=tokens,
        DEPTH=DEPTH, TURN=ROWS_IN_TURN, NORM=q_weight is not None, BIAS=bias is not None, num_warps=4, num_stages=3,
    )  # fmt: skip
    return q
