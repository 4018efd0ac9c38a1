"""Random numbers without a generator: each one is computed from what it is for.

A generator hands out numbers in order, so a draw would depend on who drew before: on the batch, the device, the number
of ranks. A counter-based generator (Salmon, Moraes, Dror and Shaw, 2011, "Parallel random numbers: as easy as 1, 2, 3")
has no state: it scrambles a key and a counter. Here the key is a request's seed and how many tokens it has drawn, the
counter is a token id. `kernels/noise.py` computes the same bits on a GPU.
"""

import torch
from torch import Tensor


def signed(bits: int, width: int) -> int:
    """An unsigned constant as torch's signed integers spell it; products wrap around to the same bits."""
    return bits - (1 << width) if bits >> (width - 1) else bits


GOLDEN = signed(0x9E3779B97F4A7C15, 64)  # 2**64 / golden ratio, odd: multiples of it spread over all bits
MIX64 = signed(0xBF58476D1CE4E5B9, 64), signed(0x94D049BB133111EB, 64)
MIX32 = signed(0x21F0AAAD, 32), signed(0xD35A2D97, 32)


def mix64(x: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014): each bit of x reaches every bit of the result."""
    x = (x ^ _shift(x, 30, 64)) * MIX64[0]
    x = (x ^ _shift(x, 27, 64)) * MIX64[1]
    return x ^ _shift(x, 31, 64)


def mix32(x: Tensor) -> Tensor:
    """The same for 32 bits, with constants found by search (Wellons' "hash prospector", 2018)."""
    x = (x ^ _shift(x, 16, 32)) * MIX32[0]
    x = (x ^ _shift(x, 15, 32)) * MIX32[1]
    return x ^ _shift(x, 15, 32)


def random_bits(seeds: Tensor, offsets: Tensor, count: int) -> Tensor:
    """seeds, offsets: [num_rows] int64 -> [num_rows, count] int32, all 32 bits random.

    Row i, column j is a pure function of seeds[i], offsets[i] and j.
    """
    key = mix64(mix64(seeds) + offsets * GOLDEN)[:, None]
    low, high = _low_half(key), _low_half(key >> 32)
    counter = torch.arange(count, dtype=torch.int32, device=seeds.device)
    # Two rounds, each with half of the key: after one, rows whose halves lie near each other would repeat each other's
    # numbers a few places on.
    return mix32(mix32(counter + low) ^ high)


def gumbel_noise(seeds: Tensor, offsets: Tensor, count: int) -> Tensor:
    """-log(-log(u)) for uniform u in (0, 1): [num_rows, count] float32, a pure function as `random_bits` is.

    The likely winners of a draw have u near 1, where float32 has few numbers. So the bits make 1 - u, which near 0 has
    many, and `log1p` keeps them: a token of probability 2**-30 is still drawn as often as that.
    """
    unsigned = random_bits(seeds, offsets, count).to(torch.int64) & 0xFFFFFFFF
    rest = ((unsigned.float() + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-rest))


def _shift(x: Tensor, bits: int, width: int) -> Tensor:
    """x >> bits, filling with zeros as for unsigned numbers; torch's own fills with the sign."""
    return (x >> bits) & ((1 << (width - bits)) - 1)


def _low_half(x: Tensor) -> Tensor:
    """The low 32 bits of int64 x, as int32."""
    x = x & 0xFFFFFFFF
    return torch.where(x >= 1 << 31, x - (1 << 32), x).to(torch.int32)
