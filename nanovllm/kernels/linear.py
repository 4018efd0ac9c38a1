"""Matrix-vector products: one or a few tokens times a weight, at the speed at which memory gives the weight.

A product of one row does two operations for each weight read, so all that counts is to have enough of the weight on its
way at any time. Each program takes a few output features, asks for their whole rows of the weight at once, and only
then looks at what to multiply them with. That order pays twice: with programmatic dependent launch (Hopper and later)
a program starts while the kernel before it still runs, and its weights, which no kernel writes, are already on their way
when the numbers they wait for arrive. What stands before a projection (add, RMSNorm) or behind it (SiLU times up) is
computed on the spot by the program that needs it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import has_pdl
from nanovllm.kernels.rms_norm import rms_scale
from nanovllm.kernels.silu_and_mul import silu

WEIGHTS, NUM_WARPS = 4096, 2  # numbers of the weight that a program holds at once, and the warps that hold them


@triton.jit
def _linear_kernel(
    out_ptr: tl.tensor, total_ptr: tl.tensor, x_ptr: tl.tensor, residual_ptr: tl.tensor, norm_ptr: tl.tensor,
    weight_ptr: tl.tensor, in_features: tl.tensor, out_features: tl.tensor, eps: tl.tensor,
    TOKENS: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """One program computes ROWS outputs of every token. WIDTH: in_features rounded up to a power of two."""
    row, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = i < in_features
    wanted = (row < out_features)[:, None] & inside[None, :]
    offsets = row.to(tl.int64)[:, None] * in_features + i[None, :]
    weight = tl.load(weight_ptr + offsets, mask=wanted, other=0.0, eviction_policy="evict_first")
    if GATED:
        up_ptr = weight_ptr + out_features.to(tl.int64) * in_features
        up_weight = tl.load(up_ptr + offsets, mask=wanted, other=0.0, eviction_policy="evict_first")
    if NORM:
        norm_weight = tl.load(norm_ptr + i, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for token in tl.static_range(TOKENS):
        x = tl.load(x_ptr + token * in_features + i, mask=inside, other=0.0)
        if ADD:
            x += tl.load(residual_ptr + token * in_features + i, mask=inside, other=0.0)
            if tl.program_id(0) == 0:
                tl.store(total_ptr + token * in_features + i, x, mask=inside)
        wide = x.to(tl.float32)
        if NORM:
            wide = ((wide * rms_scale(wide, in_features, eps)).to(x.dtype) * norm_weight).to(tl.float32)
        out = tl.sum(weight.to(tl.float32) * wide[None, :], 1).to(x.dtype)
        if GATED:
            out = silu(out) * tl.sum(up_weight.to(tl.float32) * wide[None, :], 1).to(x.dtype)
        tl.store(out_ptr + token * out_features + row, out, mask=row < out_features)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ. x: `[num_tokens, in_features]`, a few tokens, contiguous. weight: `[out_features, in_features]`, contiguous."""
    return _launch(x, None, None, 0.0, weight, False)[0]


def norm_linear(x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, gated: bool = False
                ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(norm(x + residual) Wᵀ, x + residual); without a residual (norm(x) Wᵀ, x).

    Shapes as for `linear`; residual like x; norm_weight: `[in_features]`. gated: the weight holds gate and up one below
    the other, and the product is silu(gate) * up, `[num_tokens, out_features / 2]`.
    """
    return _launch(x, residual, norm_weight, eps, weight, gated)


def _launch(x: Tensor, residual: Tensor | None, norm_weight: Tensor | None, eps: float, weight: Tensor, gated: bool
            ) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_tokens, in_features = x.shape
    out_features = len(weight) // 2 if gated else len(weight)
    width = triton.next_power_of_2(in_features)
    rows = max(1, WEIGHTS // width // (2 if gated else 1))
    out = torch.empty(num_tokens, out_features, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(x)
    pdl = has_pdl(x.device)
    _linear_kernel[(triton.cdiv(out_features, rows),)](
        out, total, x, x if residual is None else residual, x if norm_weight is None else norm_weight, weight,
        in_features, out_features, eps,
        TOKENS=num_tokens, NORM=norm_weight is not None, ADD=residual is not None, GATED=gated, PDL=pdl, ROWS=rows,
        WIDTH=width, launch_pdl=pdl, num_warps=NUM_WARPS,
    )  # fmt: skip
    return out, total
