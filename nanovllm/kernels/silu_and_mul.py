"""The gate of the feed-forward network in one pass: read two numbers, write one."""

import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import has_pdl


@triton.jit
def silu(x):
    """x * sigmoid(x), in float32, rounded to x's dtype."""
    wide = x.to(tl.float32)
    return (wide / (1.0 + tl.exp(-wide))).to(x.dtype)


@triton.jit
def _silu_and_mul_kernel(out_ptr, x_ptr, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Program (token, piece of the row)."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(x_ptr + token * 2 * size + i, mask=inside)
    up = tl.load(x_ptr + token * 2 * size + size + i, mask=inside)
    tl.store(out_ptr + token * size + i, silu(gate) * up, mask=inside)


def silu_and_mul(x: Tensor) -> Tensor:
    """x: `[num_tokens, 2 * size]`, gate and up side by side, contiguous -> `[num_tokens, size]`."""
    num_tokens, size = x.shape[0], x.shape[1] // 2
    out = x.new_empty(num_tokens, size)
    block, pdl = min(1024, triton.next_power_of_2(size)), has_pdl(x.device)
    _silu_and_mul_kernel[(num_tokens, triton.cdiv(size, block))](
        out, x, size, BLOCK=block, PDL=pdl, launch_pdl=pdl, num_warps=4,
    )  # fmt: skip
    return out
