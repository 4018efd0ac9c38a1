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


@pytest.mark.parametrize("lengths", [[200, 33, 1, 0], [700], [1, 0, 0, 300, 2, 64, 65], [3] * 20, [0, 0, 129], [513, 512]])
@pytest.mark.parametrize("num_shares", [5, 1, 2, 40])
def test_any_number_of_shares_gives_the_same(device, lengths, num_shares):
    """Sequences that fill many shares, shares that hold many sequences, and every kind of edge between the two."""
    from nanovllm.kernels.paged_decode import paged_decode

    case = paged_case(
        [(1, length) for length in lengths], num_decodes=len(lengths), num_heads=2, num_kv_heads=1, block_size=16,
        seed=num_shares, device=device,
    )  # fmt: skip
    TorchBackend().store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    out = torch.full(case.q.shape, float("nan"), device=device)
    tables, context_lens = case.context.block_tables, case.context.context_lens
    arrived = torch.zeros(num_shares, dtype=torch.int32, device=device)
    for _ in range(2):  # the counters are ready for the next launch
        paged_decode(case.q, *case.kv_cache, tables, context_lens, case.scale, out.fill_(float("nan")), arrived,
                     num_shares=num_shares)  # fmt: skip
        assert case.error(out) < 1e-5
        assert all((out[i] == 0).all() for i, length in enumerate(lengths) if length == 0)
        assert not arrived.any()


@pytest.mark.parametrize("lengths", [[200, 33, 1, 0], [700], [300, 2], [0, 0, 129], [513, 512, 128, 127], [2049]])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "max_pieces"), [(6, 2, 4), (2, 1, 1), (2, 2, 16), (5, 1, 40)])
def test_few_sequences_in_pieces(device, lengths, num_heads, num_kv_heads, max_pieces):
    """One tile and many, pieces without keys, more pieces than are joined at once, groups that are no power of two."""
    from nanovllm.kernels.paged_decode_few import paged_decode_few

    case = paged_case(
        [(1, length) for length in lengths], num_decodes=len(lengths), num_heads=num_heads, num_kv_heads=num_kv_heads,
        block_size=16, seed=max_pieces, device=device,
    )  # fmt: skip
    TorchBackend().store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    out = torch.full(case.q.shape, float("nan"), device=device)
    tables, context_lens = case.context.block_tables, case.context.context_lens
    arrived = torch.zeros(len(lengths) * num_kv_heads, dtype=torch.int32, device=device)
    for _ in range(2):  # the counters are ready for the next launch
        paged_decode_few(case.q, *case.kv_cache, tables, context_lens, case.scale, out.fill_(float("nan")), arrived,
                         max_pieces)  # fmt: skip
        assert case.error(out) < 1e-5
        assert all((out[i] == 0).all() for i, length in enumerate(lengths) if length == 0)
        assert not arrived.any()


def test_store_refuses_layouts_it_cannot_read(device):
    from nanovllm.kernels.kv_store import store_kv

    case = paged_case([(1, 4)], num_decodes=1, device=device)
    k_cache, v_cache = case.kv_cache
    slots = case.context.slot_mapping
    with pytest.raises(ValueError, match="must be contiguous"):
        store_kv(case.k, case.v, k_cache[:, ::2], v_cache, slots)
    with pytest.raises(ValueError, match="must end in 1"):
        store_kv(case.k.transpose(1, 2), case.v, k_cache, v_cache, slots)
