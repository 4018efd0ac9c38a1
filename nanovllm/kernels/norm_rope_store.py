"""What stands between the QKV projection and attention, in one pass: bias, head norms, RoPE, and the store to the cache."""

import triton
import triton.language as tl
from torch import Tensor

from nanovllm.errors import InvalidArgument
from nanovllm.kernels.device import has_pdl
from nanovllm.kernels.rms_norm import rms_scale


@triton.jit
def _scaled(raw: tl.tensor, factor: tl.tensor, bias_ptr: tl.tensor, offsets: tl.tensor, inside: tl.tensor,
            BIAS: tl.constexpr) -> tl.tensor:
    """raw * factor + bias, in float32; offsets: of the heads' channels in the projection's output."""
    wide = raw.to(tl.float32) * factor
    if BIAS:
        wide += tl.load(bias_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    return wide


@triton.jit
def _halves(weight_ptr: tl.tensor, HALF: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """A norm's weight, cut in the middle as the heads are."""
    i = tl.arange(0, HALF)
    return tl.load(weight_ptr + i)[None, :], tl.load(weight_ptr + HALF + i)[None, :]


@triton.jit
def _norm_rope(wide1: tl.tensor, wide2: tl.tensor, weight1: tl.tensor, weight2: tl.tensor, cos: tl.tensor, sin: tl.tensor,
               eps: tl.tensor, dtype: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Heads cut in the middle, `[heads, HALF]` each: their norm, then the turn of each pair (wide1[i], wide2[i])."""
    if NORM:
        scale = tl.rsqrt((tl.sum(wide1 * wide1, 1) + tl.sum(wide2 * wide2, 1)) / (2 * HALF) + eps)[:, None]
        # Rounded where the plain layers round: after the norm and after its weight.
        wide1 = ((wide1 * scale).to(dtype) * weight1).to(tl.float32)
        wide2 = ((wide2 * scale).to(dtype) * weight2).to(tl.float32)
    return (wide1 * cos - wide2 * sin).to(dtype), (wide2 * cos + wide1 * sin).to(dtype)


@triton.jit
def _norm_rope_store_kernel(
    qkv_ptr: tl.tensor, k_cache_ptr: tl.tensor, v_cache_ptr: tl.tensor, slots_ptr: tl.tensor, positions_ptr: tl.tensor,
    cos_ptr: tl.tensor, sin_ptr: tl.tensor, q_weight_ptr: tl.tensor, k_weight_ptr: tl.tensor, eps: tl.tensor,
    bias_ptr: tl.tensor, stream_ptr: tl.tensor, stream_size: tl.tensor, stream_eps: tl.tensor,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    Q_ROWS: tl.constexpr, KV_ROWS: tl.constexpr, STREAM_BLOCK: tl.constexpr, PDL: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr,
) -> None:  # fmt: skip
    """One program takes one token, all its heads. Q_ROWS, KV_ROWS: the numbers of heads, rounded up to powers of two."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    HALF: tl.constexpr = HEAD_DIM // 2
    WIDTH: tl.constexpr = NUM_KV_HEADS * HEAD_DIM
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, HALF)
    # Positions, slots and weights are there since before the step's first layer: only the projection is worth waiting for.
    position, slot = tl.load(positions_ptr + token), tl.load(slots_ptr + token)
    cos = tl.load(cos_ptr + position * HALF + i)[None, :]
    sin = tl.load(sin_ptr + position * HALF + i)[None, :]
    row_ptr = qkv_ptr + token * (NUM_HEADS * HEAD_DIM + 2 * WIDTH)
    head, kv_head = tl.arange(0, Q_ROWS)[:, None], tl.arange(0, KV_ROWS)[:, None]
    q_offsets, offsets = head * HEAD_DIM + i[None, :], kv_head * HEAD_DIM + i[None, :]
    q_ptrs = row_ptr + q_offsets
    key_ptr, value_ptr = row_ptr + NUM_HEADS * HEAD_DIM, row_ptr + NUM_HEADS * HEAD_DIM + WIDTH
    q_inside, inside = head < NUM_HEADS, kv_head < NUM_KV_HEADS
    q_weight1, q_weight2, k_weight1, k_weight2 = cos, cos, cos, cos
    if NORM:
        q_weight1, q_weight2 = _halves(q_weight_ptr, HALF)
        k_weight1, k_weight2 = _halves(k_weight_ptr, HALF)
    if PDL:
        tl.extra.cuda.gdc_wait()
    factor = 1.0
    if STREAM_BLOCK:
        j = tl.arange(0, STREAM_BLOCK)
        stream = tl.load(stream_ptr + token * stream_size + j, mask=j < stream_size, other=0.0)
        factor = rms_scale(stream.to(tl.float32), stream_size, stream_eps)
    first = tl.load(q_ptrs, mask=q_inside, other=0.0)
    second = tl.load(q_ptrs + HALF, mask=q_inside, other=0.0)
    key1, key2 = tl.load(key_ptr + offsets, mask=inside, other=0.0), tl.load(key_ptr + HALF + offsets, mask=inside, other=0.0)
    value1, value2 = tl.load(value_ptr + offsets, mask=inside), tl.load(value_ptr + HALF + offsets, mask=inside)

    wide1 = _scaled(first, factor, bias_ptr, q_offsets, q_inside, BIAS)
    wide2 = _scaled(second, factor, bias_ptr, q_offsets + HALF, q_inside, BIAS)
    first, second = _norm_rope(wide1, wide2, q_weight1, q_weight2, cos, sin, eps, dtype, HALF, NORM)
    tl.store(q_ptrs, first, mask=q_inside)
    tl.store(q_ptrs + HALF, second, mask=q_inside)
    if slot >= 0:
        k_bias_ptr, v_bias_ptr = bias_ptr + NUM_HEADS * HEAD_DIM, bias_ptr + NUM_HEADS * HEAD_DIM + WIDTH
        k_wide1 = _scaled(key1, factor, k_bias_ptr, offsets, inside, BIAS)
        k_wide2 = _scaled(key2, factor, k_bias_ptr, offsets + HALF, inside, BIAS)
        key1, key2 = _norm_rope(k_wide1, k_wide2, k_weight1, k_weight2, cos, sin, eps, dtype, HALF, NORM)
        k_ptrs, v_ptrs = k_cache_ptr + slot * WIDTH + offsets, v_cache_ptr + slot * WIDTH + offsets
        tl.store(k_ptrs, key1, mask=inside)
        tl.store(k_ptrs + HALF, key2, mask=inside)
        tl.store(v_ptrs, _scaled(value1, factor, v_bias_ptr, offsets, inside, BIAS).to(dtype), mask=inside)
        tl.store(v_ptrs + HALF, _scaled(value2, factor, v_bias_ptr, offsets + HALF, inside, BIAS).to(dtype), mask=inside)


def norm_rope_store(
    qkv: Tensor,
    positions: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    stream: Tensor | None = None,
    stream_eps: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Norm and turn the query and key heads; send keys and values to their slots; return the queries.

    qkv: `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`, contiguous; its query part is overwritten with the
    result, which comes back as `[num_tokens, num_heads, head_dim]`, a view. positions: `[num_tokens]`. q_weight,
    k_weight: `[head_dim]`, or None for heads without a norm. cos, sin: `[max_positions, head_dim / 2]` float32. k_cache,
    v_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, contiguous. slot_mapping: `[num_tokens]` int64; -1 is not
    stored. stream: the residual stream, `[num_tokens, hidden_size]`, when the projection was given it as it is (see
    `models/fused.py`): everything is multiplied by 1 / rms of its row first. bias: what the projection left out, as long as
    a row of qkv; it is added after that.
    InvalidArgument if a layout does not hold.
    """
    if not (qkv.is_contiguous() and k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise InvalidArgument(f"strides {qkv.stride()}, {k_cache.stride()}, {v_cache.stride()} must be contiguous; "
                         "pass the projection's whole output and one layer's view of the cache")  # fmt: skip
    num_kv_heads, head_dim = k_cache.shape[2:]
    pdl = has_pdl(qkv.device)
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    _norm_rope_store_kernel[(len(qkv),)](
        qkv, k_cache, v_cache, slot_mapping, positions, cos, sin,
        qkv if q_weight is None else q_weight, qkv if k_weight is None else k_weight, eps, qkv if bias is None else bias,
        qkv if stream is None else stream, 0 if stream is None else stream.shape[1], stream_eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, Q_ROWS=triton.next_power_of_2(num_heads),
        KV_ROWS=triton.next_power_of_2(num_kv_heads),
        STREAM_BLOCK=0 if stream is None else triton.next_power_of_2(stream.shape[1]), PDL=pdl, launch_pdl=pdl, num_warps=4,
        NORM=q_weight is not None, BIAS=bias is not None,
    )  # fmt: skip
    return qkv[:, : num_heads * head_dim].view(len(qkv), num_heads, head_dim)
