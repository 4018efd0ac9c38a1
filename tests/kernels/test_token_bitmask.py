"""Bit masks: the plain form against llguidance's own, and the kernel against the plain form, bit for bit."""

import numpy as np
import pytest
import torch
from llguidance.numpy import apply_token_bitmask_inplace

from nanovllm import SamplingParams
from nanovllm.layers.logits_processors import LogitsProcessors
from nanovllm.layers.sampler import Sampler, SamplingBatch
from nanovllm.layers.token_bitmask import CHUNK_ROWS, TokenBitmask, apply_bitmask

triton = pytest.importorskip("triton")
from nanovllm.kernels import token_bitmask as fast  # noqa: E402

FORMS = {"plain": apply_bitmask, "kernel": fast.apply_bitmask}


def case(num_rows, num_masked, vocab_size, device):
    torch.manual_seed(0)
    bits = torch.randint(-2**31, 2**31, (num_masked, -(-vocab_size // 32)), dtype=torch.int64).to(torch.int32)
    return [t.to(device) for t in (torch.randn(num_rows, vocab_size), torch.randperm(num_rows)[:num_masked], bits)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 4095, 4096, 5001])
def test_what_the_bits_do_not_allow_is_forbidden_and_nothing_else_is_touched(form, vocab_size, device):
    scores, rows, bits = case(5, 3, vocab_size, device)
    expected = scores.clone()
    own = expected[rows].cpu().numpy()
    apply_token_bitmask_inplace(own, bits.cpu().numpy())
    expected[rows] = torch.from_numpy(own).to(device)
    FORMS[form](scores, rows, bits)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("form", FORMS)
def test_rows_far_apart_all_bits_and_none(form, device):
    wide = torch.zeros(6, 300, device=device)  # rows that do not follow each other in memory
    scores = wide[::2, :100]
    bits = torch.tensor([[-1] * 4, [0] * 4], dtype=torch.int32, device=device)
    FORMS[form](scores, torch.tensor([2, 0], device=device), bits)
    assert scores[2].eq(0).all() and scores[0].isinf().all() and scores[1].eq(0).all() and wide[:, 100:].eq(0).all()
    FORMS[form](scores, torch.empty(0, dtype=torch.int64, device=device), bits[:0])


def test_more_rows_than_are_spread_out_at_once(device):
    scores, rows, bits = case(2 * CHUNK_ROWS + 9, 2 * CHUNK_ROWS + 1, 70, device)
    other = scores.clone()
    apply_bitmask(scores, rows, bits)
    fast.apply_bitmask(other, rows, bits)
    assert torch.equal(scores, other)


@pytest.mark.parametrize("form", FORMS)
def test_the_sampler_draws_allowed_tokens_only_behind_any_filter(form, device):
    params = [SamplingParams(temperature=t, **filters) for t in (0, 0.5, 2) for filters in (
        {}, dict(top_k=5), dict(top_p=0.3), dict(min_p=0.2), dict(top_k=50, top_p=0.9, min_p=0.01))]
    num_rows, vocab_size = len(params), 200
    logits = case(num_rows, num_rows, vocab_size, device)[0]
    allowed = torch.rand(num_rows, vocab_size) < 0.02
    allowed[torch.arange(num_rows), torch.randint(vocab_size, (num_rows,))] = True
    packed = np.packbits(torch.nn.functional.pad(allowed, (0, 24)).numpy(), axis=1, bitorder="little").view(np.int32)
    mask = TokenBitmask(torch.arange(num_rows, device=device), torch.from_numpy(packed.copy()).to(device), FORMS[form])
    for seed in range(20):
        batch = SamplingBatch.from_params(params, [seed] * num_rows, [0] * num_rows, device,
                                          processors=LogitsProcessors(bitmask=mask))
        kept = logits.clone()
        tokens = Sampler()(logits, batch)
        assert allowed[torch.arange(num_rows), tokens.cpu()].all() and torch.equal(kept, logits)
