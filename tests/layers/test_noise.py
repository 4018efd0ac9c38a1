"""The noise against whole numbers of Python, and against what random numbers must look like along every direction."""

import math

import pytest
import torch

from nanovllm.layers.noise import gumbel_noise, random_bits

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def in_python(seed: int, offset: int, token: int) -> int:
    def mix(x, constants, shifts, mask):
        for constant, shift in zip(constants, shifts):
            x = ((x ^ (x >> shift)) * constant) & mask
        return x ^ (x >> shifts[-1])

    def mix64(x):
        return mix(x, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB), (30, 27, 31), M64)

    def mix32(x):
        return mix(x, (0x21F0AAAD, 0xD35A2D97), (16, 15, 15), M32)

    key = mix64((mix64(seed) + offset * 0x9E3779B97F4A7C15) & M64)
    return mix32(mix32((token + (key & M32)) & M32) ^ (key >> 32))


def bits_of(seeds, offsets, count: int) -> torch.Tensor:
    seeds, offsets = torch.broadcast_tensors(torch.as_tensor(seeds), torch.as_tensor(offsets))
    return random_bits(seeds.reshape(-1).long(), offsets.reshape(-1).long(), count).long() & M32


# Neighbours along each direction: what a poor generator confuses first.
DIRECTIONS = {"tokens": (123, 0, 1 << 18), "offsets": (7, torch.arange(1 << 12), 64), "seeds": (torch.arange(1 << 12), 0, 64)}


def test_bits_are_those_of_exact_arithmetic():
    seeds, offsets = [0, 1, 2**31, 2**63 - 1, 0x9E3779B97F4A7C15 % 2**63], [0, 1, 4095, 2**31, 5]
    bits = bits_of(seeds, offsets, 200)
    for row, seed, offset in zip(bits.tolist(), seeds, offsets):
        assert row == [in_python(seed, offset, token) for token in range(200)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_byte_is_uniform_and_neighbours_are_unrelated(direction):
    bits = bits_of(*DIRECTIONS[direction])
    flat = bits.flatten() if direction == "tokens" else bits.T.flatten()  # neighbours of the direction side by side
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((flat >> shift) & 255, minlength=256).double()
        expected = len(flat) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < 6 * math.sqrt(2 * 255), (shift, chi_square)
    flips = flat[1:] ^ flat[:-1]  # each bit differs between neighbours in half of the cases
    for bit in range(32):
        share = float(((flips >> bit) & 1).double().mean())
        assert abs(share - 0.5) < 6 * 0.5 / math.sqrt(len(flips)), bit


def test_one_changed_bit_of_seed_offset_or_token_changes_half_of_the_bits():
    gen = torch.Generator().manual_seed(0)
    seeds, offsets = torch.randint(2**62, (2000,), generator=gen), torch.randint(2**20, (2000,), generator=gen)
    before = bits_of(seeds, offsets, 1)[:, 0]
    for flip in range(0, 63, 3):
        changed = [bits_of(seeds ^ (1 << flip), offsets, 1)[:, 0]]
        if flip < 20:
            changed.append(bits_of(seeds, offsets ^ (1 << flip), 1)[:, 0])
        if flip < 12:
            changed.append(bits_of(seeds, offsets, (1 << flip) + 1)[:, 1 << flip])
        for after in changed:
            share = sum(float((((before ^ after) >> bit) & 1).double().mean()) for bit in range(32)) / 32
            assert abs(share - 0.5) < 0.02, flip


def test_gumbel_noise_has_the_distribution_of_its_name():
    noise = gumbel_noise(torch.arange(256), torch.zeros(256, dtype=torch.int64), 4096).double().flatten()
    assert noise.isfinite().all()
    count = len(noise)
    assert abs(noise.mean() - 0.5772156649) < 6 * math.pi / math.sqrt(6 * count)
    for x in (-1.5, -0.5, 0.0, 1.0, 3.0, 6.0, 10.0):  # the share below x is exp(-exp(-x)), far into the upper tail
        share = math.exp(-math.exp(-x))
        assert abs((noise <= x).double().mean() - share) < 6 * math.sqrt(share * (1 - share) / count), x


def test_all_ones_and_all_zeros_stay_finite(monkeypatch):
    ends = torch.tensor([[0, -1, 1, 2**31 - 1, -(2**31)]], dtype=torch.int32)
    monkeypatch.setattr("nanovllm.layers.noise.random_bits", lambda *_: ends)
    noise = gumbel_noise(torch.zeros(1), torch.zeros(1), 5)[0]
    assert noise.isfinite().all() and noise[0] > 22 and noise[1] < -2.7
