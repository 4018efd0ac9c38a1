"""The kernels' noise is the layers' noise: the same bits, the same Gumbel numbers to rounding."""

import pytest
import torch

from nanovllm.layers import noise

triton = pytest.importorskip("triton")
tl = triton.language
from nanovllm.kernels.noise import gumbel, random_bits, row_key  # noqa: E402


@triton.jit
def noise_kernel(bits_ptr, gumbel_ptr, seeds_ptr, offsets_ptr, COUNT: tl.constexpr):
    row = tl.program_id(0)
    low, high = row_key(tl.load(seeds_ptr + row), tl.load(offsets_ptr + row))
    token = tl.arange(0, COUNT)
    bits = random_bits(low, high, token)
    tl.store(bits_ptr + row * COUNT + token, bits.to(tl.int32, bitcast=True))
    tl.store(gumbel_ptr + row * COUNT + token, gumbel(bits))


def test_bits_are_equal_and_noise_agrees(device):
    gen = torch.Generator().manual_seed(0)
    seeds = torch.cat([torch.tensor([0, 1, 2**63 - 1]), torch.randint(2**63 - 1, (29,), generator=gen)]).to(device)
    offsets = torch.cat([torch.tensor([0, 5, 2**31]), torch.randint(5000, (29,), generator=gen)]).to(device)
    bits = torch.empty(32, 4096, dtype=torch.int32, device=device)
    numbers = torch.empty(32, 4096, device=device)
    noise_kernel[(32,)](bits, numbers, seeds, offsets, COUNT=4096)
    assert torch.equal(bits, noise.random_bits(seeds, offsets, 4096))
    torch.testing.assert_close(numbers, noise.gumbel_noise(seeds, offsets, 4096), rtol=1e-4, atol=1e-4)
