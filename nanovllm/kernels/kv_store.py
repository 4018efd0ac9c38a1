"""Writing this step's keys and values into the paged cache."""

import triton
import triton.language as tl
from torch import Tensor

from nanovllm.errors import InvalidArgument


@triton.jit
def _store_kernel(
    k_ptr: tl.tensor, v_ptr: tl.tensor, k_cache_ptr: tl.tensor, v_cache_ptr: tl.tensor, slots_ptr: tl.tensor,
    k_stride_token: tl.tensor, k_stride_head: tl.tensor, v_stride_token: tl.tensor, v_stride_head: tl.tensor,
    WIDTH: tl.constexpr,  # num_kv_heads * head_dim: the numbers of one token in one cache
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,  # WIDTH rounded up to a power of two
) -> None:  # fmt: skip
    """One program copies one token: its key and its value, all heads."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot >= 0:
        i = tl.arange(0, BLOCK)
        head, dim = i // HEAD_DIM, i % HEAD_DIM
        inside = i < WIDTH
        key = tl.load(k_ptr + token * k_stride_token + head * k_stride_head + dim, mask=inside)
        value = tl.load(v_ptr + token * v_stride_token + head * v_stride_head + dim, mask=inside)
        tl.store(k_cache_ptr + slot * WIDTH + i, key, mask=inside)
        tl.store(v_cache_ptr + slot * WIDTH + i, value, mask=inside)


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Copy k, v `[num_tokens, num_kv_heads, head_dim]` to their slots of the cache, in place.

    k_cache, v_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, contiguous. slot_mapping: `[num_tokens]`
    int64; token i goes to slot `block * block_size + offset`, nowhere when that is -1. k and v may be slices of a
    packed projection: only their last dimension must be contiguous. InvalidArgument if the layouts do not hold.
    """
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise InvalidArgument(f"cache strides {k_cache.stride()}, {v_cache.stride()} must be contiguous; pass one layer's view")
    if k.stride(-1) != 1 or v.stride(-1) != 1:
        raise InvalidArgument(f"k, v strides {k.stride()}, {v.stride()} must end in 1; call .contiguous() first")
    num_tokens, num_kv_heads, head_dim = k.shape
    if num_tokens == 0:
        return
    width = num_kv_heads * head_dim
    _store_kernel[(num_tokens,)](
        k, v, k_cache, v_cache, slot_mapping, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        WIDTH=width, HEAD_DIM=head_dim, BLOCK=triton.next_power_of_2(width), num_warps=4 if width >= 512 else 1,
    )  # fmt: skip
