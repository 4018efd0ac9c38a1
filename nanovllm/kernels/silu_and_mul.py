"""The gate of the feed-forward network in one pass: read two numbers, write one."""

import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import has_pdl
from nanovllm.kernels.rms_norm import rms_scale


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    """x * sigmoid(x), in float32, rounded to x's dtype."""
    wide = x.to(tl.float32)
    return (wide / (1.0 + tl.exp(-wide))).to(x.dtype)


@triton.jit
def _silu_and_mul_kernel(
    out_ptr: tl.tensor, x_ptr: tl.tensor, size: tl.tensor, stream_ptr: tl.tensor, stream_size: tl.tensor, stream_eps: tl.tensor,
    BLOCK: tl.constexpr, STREAM_BLOCK: tl.constexpr, PDL: tl.constexpr,
) -> None:  # fmt: skip
    """Program (token, piece of the row)."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(x_ptr + token * 2 * size + i, mask=inside)
    up = tl.load(x_ptr + token * 2 * size + size + i, mask=inside)
    if STREAM_BLOCK:
        j = tl.arange(0, STREAM_BLOCK)
        stream = tl.load(stream_ptr + token * stream_size + j, mask=j < stream_size, other=0.0)
        factor = rms_scale(stream.to(tl.float32), stream_size, stream_eps)
        gate, up = (gate.to(tl.float32) * factor).to(gate.dtype), (up.to(tl.float32) * factor).to(up.dtype)
    tl.store(out_ptr + token * size + i, silu(gate) * up, mask=inside)


def silu_and_mul(x: Tensor, stream: Tensor | None = None, stream_eps: float = 0.0) -> Tensor:
    """x: `[num_tokens, 2 * size]`, gate and up side by side, contiguous -> `[num_tokens, size]`.

    stream: as for `norm_rope_store`; x is multiplied by 1 / rms of its row first.
    """
    num_tokens, size = x.shape[0], x.shape[1] // 2
    out = x.new_empty(num_tokens, size)
    block, pdl = min(1024, triton.next_power_of_2(size)), has_pdl(x.device)
    _silu_and_mul_kernel[(num_tokens, triton.cdiv(size, block))](
        out, x, size, x if stream is None else stream, 0 if stream is None else stream.shape[1], stream_eps,
        BLOCK=block, STREAM_BLOCK=0 if stream is None else triton.next_power_of_2(stream.shape[1]), PDL=pdl, launch_pdl=pdl,
        num_warps=4,
    )  # fmt: skip
    return out
