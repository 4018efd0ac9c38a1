"""Our Triton kernels against the torch backend, in the interpreter when there is no GPU."""

import pytest
import torch

from nanovllm.layers.attention import TorchBackend, TritonBackend
from tests.layers.paged_cases import paged_case

MIXED = [(1, 1), (1, 9), (1, 70), (1, 0), (5, 5), (3, 12), (37, 70), (1, 17), (2, 0)]  # 4 decodes, then chunks


def attend(backend, case):
    """Store and attend, on a copy of the cache."""
    kv_cache = case.kv_cache.clone()
    backend.store(case.k, case.v, *kv_cache, case.context.slot_mapping)
    return backend.attend(case.q, *kv_cache, case.context, case.scale), kv_cache


@pytest.fixture(autouse=True)
def poisoned_output(monkeypatch):
    """What torch.empty hands out is NaN here, so an output that a kernel forgets to write shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr("nanovllm.layers.attention.torch.empty", poisoned)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(2, 2, 32, 16), (4, 2, 64, 1), (4, 1, 128, 4), (8, 1, 16, 64), (6, 2, 32, 256), (2, 1, 32, 3)],
)
def test_mixed_batch_matches_torch(device, num_heads, num_kv_heads, head_dim, block_size):
    case = paged_case(
        MIXED, num_decodes=4, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        block_size=block_size, seed=head_dim + block_size, device=device,
    )  # fmt: skip
    out, kv_cache = attend(TritonBackend(), case)
    plain, plain_cache = attend(TorchBackend(), case)
    assert case.error(out) < 1e-5
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(kv_cache.nan_to_num(7.0), plain_cache.nan_to_num(7.0))


def test_half_precision(device):
    case = paged_case(MIXED, num_decodes=4, dtype=torch.float16, block_size=16, seed=1, device=device)
    out, _ = attend(TritonBackend(), case)
    assert out.dtype == torch.float16
    assert case.error(out) < 3e-3


@pytest.mark.parametrize("num_splits", [1, 2, 5])
def test_any_number_of_splits_gives_the_same(device, num_splits):
    from nanovllm.kernels.paged_decode import paged_decode

    case = paged_case(
        [(1, 200), (1, 33), (1, 1), (1, 0)], num_decodes=4, num_heads=2, num_kv_heads=1, block_size=16,
        seed=num_splits, device=device,
    )  # fmt: skip
    TorchBackend().store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    out = torch.full(case.q.shape, float("nan"), device=device)
    context = case.context
    paged_decode(
        case.q, *case.kv_cache, context.block_tables, context.context_lens, 200, case.scale, out, num_splits=num_splits
    )
    assert case.error(out) < 1e-5
    assert (out[3] == 0).all()


def test_splits_are_chosen_by_the_batch_and_bounded_by_the_context():
    pytest.importorskip("triton")
    from nanovllm.kernels.paged_decode import MAX_SPLITS, choose_splits

    assert choose_splits(num_seqs=256, num_kv_heads=8, max_seqlen_k=4096, tile=64, programs=528) == 1
    assert choose_splits(num_seqs=8, num_kv_heads=8, max_seqlen_k=4096, tile=64, programs=528) == 8
    assert choose_splits(num_seqs=1, num_kv_heads=8, max_seqlen_k=100, tile=64, programs=528) == 2
    assert choose_splits(num_seqs=1, num_kv_heads=1, max_seqlen_k=1 << 20, tile=64, programs=528) == MAX_SPLITS
    assert choose_splits(num_seqs=1, num_kv_heads=1, max_seqlen_k=0, tile=64, programs=528) == 1


def test_a_larger_bound_on_the_context_changes_nothing(device):
    """A CUDA graph is captured for the longest context; the lengths on the device say what is really there."""
    case = paged_case([(1, 40), (1, 7)], num_decodes=2, block_size=16, seed=2, device=device)
    case.context.max_seqlen_k = 4096
    out, _ = attend(TritonBackend(), case)
    assert case.error(out) < 1e-5


def test_store_refuses_layouts_it_cannot_read(device):
    from nanovllm.kernels.kv_store import store_kv

    case = paged_case([(1, 4)], num_decodes=1, device=device)
    k_cache, v_cache = case.kv_cache
    slots = case.context.slot_mapping
    with pytest.raises(ValueError, match="must be contiguous"):
        store_kv(case.k, case.v, k_cache[:, ::2], v_cache, slots)
    with pytest.raises(ValueError, match="must end in 1"):
        store_kv(case.k.transpose(1, 2), case.v, k_cache, v_cache, slots)
