"""The noise of a draw, computed where it is used: the same bits as `layers/noise.py`, which says where they come from."""

import triton
import triton.language as tl


@triton.jit
def row_key(seed: tl.tensor, offset: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The two 32-bit keys of a row: seed and offset (int64), scrambled together."""
    key = _mix64(_mix64(seed.to(tl.uint64)) + offset.to(tl.uint64) * 0x9E3779B97F4A7C15)
    return (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def random_bits(low: tl.tensor, high: tl.tensor, token: tl.tensor) -> tl.tensor:
    """32 random bits for each token id; low, high: the row's keys."""
    return _mix32(_mix32(token.to(tl.uint32) + low) ^ high)


@triton.jit
def gumbel(bits: tl.tensor, FAST: tl.constexpr = False) -> tl.tensor:
    """Gumbel noise, float32, of 32 random bits. FAST: the hardware's own logarithm, 2**-22 off, which only a GPU has."""
    rest = (bits.to(tl.float32) + 0.5) * (2.0**-32)
    rest = tl.minimum(rest, 1.0 - 2.0**-24)
    # log1p(-rest): its series where 1 - rest would lose what rest knows.
    waited = tl.where(rest < 2.0**-8, rest + rest * rest * (0.5 + rest * 0.3333333), -_log(1.0 - rest, FAST))
    return -_log(waited, FAST)


@triton.jit
def _log(x: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    if FAST:
        return tl.extra.cuda.libdevice.fast_logf(x)
    return tl.log(x)


@triton.jit
def _mix64(x: tl.tensor) -> tl.tensor:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _mix32(x: tl.tensor) -> tl.tensor:
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)
