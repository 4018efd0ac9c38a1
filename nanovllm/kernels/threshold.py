"""Finding a threshold without sorting: the largest number at or above which there is enough.

Floats are compared as whole numbers that stand in the same order, and the threshold is found bit by bit from the top, as
radix selection does (Alabi, Blanchard, Gordon and Steinbach, 2012, "Fast k-selection algorithms for graphics processing
units"): set a bit, sum what lies at or above, keep the bit if that is enough. Enough of what differs: of tokens for top-k,
of their weights for top-p. Weights are whole numbers (`layers/filters.py`), so the order of a sum does not matter.
"""

import triton
import triton.language as tl

from nanovllm.utils import filters

LOG2_E = tl.constexpr(filters.LOG2_E)
EXP2_1, EXP2_2, EXP2_3, EXP2_4, EXP2_5, EXP2_6 = (tl.constexpr(constant) for constant in filters.EXP2)
EXPONENT = tl.constexpr(filters.WEIGHT_BITS + 127)  # of a weight's scale, as float32 writes it
SHARE_BITS, SHARES = tl.constexpr(filters.SHARE_BITS), tl.constexpr(2**filters.SHARE_BITS)


@triton.jit
def sort_key(x: tl.tensor) -> tl.tensor:
    """uint32 in the order of the float32 x; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def key_value(key: tl.tensor) -> tl.tensor:
    """The float32 whose `sort_key` it is."""
    bits = (key ^ 0x80000000).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def divided(x: tl.tensor, divisor: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    """x / divisor, rounded once. FAST: from a product and what it lacks (Markstein, 1990), which takes a GPU a third of the
    time that its division takes; the interpreter has no fused multiply-add."""
    if FAST:
        reciprocal = tl.math.div_rn(1.0, divisor)
        quotient = x * reciprocal
        corrected = tl.fma(tl.fma(-quotient, divisor, x), reciprocal, quotient)
        return tl.where(tl.abs(quotient) < float("inf"), corrected, quotient)
    return tl.math.div_rn(x, divisor)


@triton.jit
def softmax_weight(scores: tl.tensor, highest: tl.tensor) -> tl.tensor:
    """As `layers.filters.softmax_weights`, to the bit, if the kernel is compiled without fused multiply-adds."""
    power = tl.maximum((scores - highest) * LOG2_E, -64.0)
    whole = tl.floor(power)
    part = power - whole
    value = ((((EXP2_6 * part + EXP2_5) * part + EXP2_4) * part + EXP2_3) * part + EXP2_2) * part + EXP2_1
    value = value * part + 1.0
    scale = ((whole.to(tl.int32) + EXPONENT) << 23).to(tl.float32, bitcast=True)
    return (value * scale).to(tl.int64)


@triton.jit
def top_p_target(top_p: tl.tensor, total: tl.tensor) -> tl.tensor:
    """As `layers.filters.top_p_target`."""
    share = (top_p * SHARES).to(tl.int64)
    low = total % SHARES
    return tl.maximum((total >> SHARE_BITS) * share + ((low * share) >> SHARE_BITS), 1)


@triton.jit
def threshold(keys: tl.tensor, weights: tl.tensor, target: tl.tensor, LOW: tl.constexpr) -> tl.tensor:
    """The largest key that has weights of `target` in all at or above it; 0 when all together have less.

    keys: uint32, weights: int64 or int32, one shape. LOW: low bits that are alike in all keys of one sign.
    """
    found = tl.full([], 0, tl.uint32)
    top = tl.full([], 0x80000000, tl.uint32)
    for i in range(32 - LOW):
        attempt = found | (top >> i)
        enough = tl.sum(tl.where(keys >= attempt, weights, 0)) >= target
        found = tl.where(enough, attempt, found)
    return full_key(found, LOW)


@triton.jit
def full_key(found: tl.tensor, LOW: tl.constexpr) -> tl.tensor:
    """The key with its low bits: numbers that had fewer bits than float32 end in zeros, in ones where they are negative."""
    ones = tl.full([], (1 << LOW) - 1, tl.uint32)
    return tl.where(found < 0x80000000, found | ones, found)
