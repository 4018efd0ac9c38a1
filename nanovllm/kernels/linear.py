"""Matrix-vector products: one or a few tokens times a weight, at the speed at which memory gives the weight.

A product of one row does two operations for each weight read, so all that counts is to have enough of the weight on its
way at any time. Each program takes a few output features, asks for their whole rows of the weight at once, and only
then looks at what to multiply them with. That order pays twice: with programmatic dependent launch (Hopper and later)
a program starts while the kernel before it still runs, and its weights, which no kernel writes, are already on their way
when the numbers they wait for arrive. What stands before a projection (1 / rms of the token's row) or behind it (SiLU times
up, the sum with the residual stream) is computed on the spot by the program that needs it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import has_pdl
from nanovllm.kernels.rms_norm import rms_scale
from nanovllm.kernels.silu_and_mul import silu

# For inputs up to so wide: the numbers of the weight that a program holds at once, and the warps that hold them. One warp needs
# no other to add up a row; many warps share one read of a wide input. As measured on an H200 (benchmarks/NOTES.md).
CUTS: tuple[tuple[int, int, int], ...] = ((2048, 4096, 1), (4096, 8192, 4), (8192, 16384, 4), (1 << 30, 16384, 8))


@triton.jit
def _linear_kernel(
    out_ptr: tl.tensor, x_ptr: tl.tensor, weight_ptr: tl.tensor, in_features: tl.tensor, out_features: tl.tensor,
    eps: tl.tensor, share: tl.tensor,
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
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    # All that is waited for is asked for before any of it is used.
    xs, befores = tl.tuple([]), tl.tuple([])
    for token in tl.static_range(TOKENS):
        xs = xs + tl.tuple([tl.load(x_ptr + token * in_features + i, mask=inside, other=0.0)])
        if ADD:
            befores = befores + tl.tuple([tl.load(out_ptr + token * out_features + row, mask=row < out_features)])
    for token in tl.static_range(TOKENS):
        x = xs[token]
        wide = x.to(tl.float32)
        factor = rms_scale(wide, in_features, eps) if NORM else 1.0  # of the sums: they need not wait for it
        out = tl.sum(weight.to(tl.float32) * wide[None, :], 1) * factor
        if GATED:
            up = (tl.sum(up_weight.to(tl.float32) * wide[None, :], 1) * factor).to(x.dtype)
            out = silu(out.to(x.dtype)) * up
        if ADD:
            out += befores[token].to(tl.float32) * share
        tl.store(out_ptr + token * out_features + row, out.to(x.dtype), mask=row < out_features)


def linear(x: Tensor, weight: Tensor, add_to: Tensor | None = None, share: float = 1.0) -> Tensor:
    """x Wᵀ, or share * add_to + x Wᵀ in the place of add_to, which comes back.

    x: `[num_tokens, in_features]`, a few tokens; weight: `[out_features, in_features]`; add_to: `[num_tokens, out_features]`;
    all contiguous.
    """
    return _launch(x, weight, None, False, add_to, share)


def norm_linear(x: Tensor, eps: float, weight: Tensor, gated: bool = False) -> Tensor:
    """norm(x) Wᵀ, where the norm is 1 / rms of each row. Shapes as for `linear`.

    gated: the weight holds gate and up one below the other, and the product is silu(gate) * up, `[num_tokens,
    out_features / 2]`.
    """
    return _launch(x, weight, eps, gated)


def cut(in_features: int, gated: bool) -> tuple[int, int]:
    """(rows of the weight, or of each half of it, in a program; its warps)."""
    width = triton.next_power_of_2(in_features)
    weights, num_warps = next((weights, warps) for most, weights, warps in CUTS if width <= most)
    return max(1, weights // width // (2 if gated else 1)), num_warps


def _launch(x: Tensor, weight: Tensor, eps: float | None, gated: bool, add_to: Tensor | None = None,
            share: float = 1.0) -> Tensor:
    num_tokens, in_features = x.shape
    out_features = len(weight) // 2 if gated else len(weight)
    rows, num_warps = cut(in_features, gated)
    out = torch.empty(num_tokens, out_features, dtype=x.dtype, device=x.device) if add_to is None else add_to
    pdl = has_pdl(x.device)
    _linear_kernel[(triton.cdiv(out_features, rows),)](
        out, x, weight, in_features, out_features, 0.0 if eps is None else eps, share,
        TOKENS=num_tokens, NORM=eps is not None, ADD=add_to is not None, GATED=gated, PDL=pdl, ROWS=rows,
        WIDTH=triton.next_power_of_2(in_features), launch_pdl=pdl, num_warps=num_warps,
    )  # fmt: skip
    return out
