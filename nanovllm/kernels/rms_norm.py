"""RMSNorm, and the addition before it, in one pass over the row."""

import triton
import triton.language as tl
from torch import Tensor, empty_like

from nanovllm.kernels.device import has_pdl


@triton.jit
def rms_scale(wide: tl.tensor, size: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """1 / rms of float32 numbers along their last axis; whatever pads them must be 0."""
    return tl.rsqrt(tl.sum(wide * wide, -1) / size + eps)


@triton.jit
def _norm_kernel(
    out_ptr: tl.tensor, total_ptr: tl.tensor, x_ptr: tl.tensor, residual_ptr: tl.tensor, weight_ptr: tl.tensor,
    size: tl.tensor, eps: tl.tensor,
    ADD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
) -> None:  # fmt: skip
    """One program normalises one row, which it holds in registers."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < size
    weight = tl.load(weight_ptr + i, mask=inside)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + row * size + i, mask=inside, other=0.0)
    if ADD:
        x += tl.load(residual_ptr + row * size + i, mask=inside, other=0.0)
        tl.store(total_ptr + row * size + i, x, mask=inside)
    wide = x.to(tl.float32)
    normed = (wide * rms_scale(wide, size, eps)).to(x.dtype)
    tl.store(out_ptr + row * size + i, normed * weight, mask=inside)


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual), as `layers.layernorm.RMSNorm` says; without a residual (norm(x), x).

    x, residual: `[num_tokens, size]`, contiguous, never written. The sum is rounded to their dtype before the norm, as
    it is in the plain layer.
    """
    out = empty_like(x)
    total = x if residual is None else empty_like(x)
    num_tokens, size = x.shape
    pdl = has_pdl(x.device)
    _norm_kernel[(num_tokens,)](
        out, total, x, x if residual is None else residual, weight, size, eps,
        ADD=residual is not None, BLOCK=triton.next_power_of_2(size), PDL=pdl, launch_pdl=pdl,
        num_warps=4 if size <= 2048 else 8,
    )  # fmt: skip
    return out, total
