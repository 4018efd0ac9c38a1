"""Several queries of a sequence at once: the kernel against the plain form, and the plain form against float64 in loops."""

import pytest
import torch

from nanovllm.kernels.paged_verify import paged_verify
from nanovllm.layers.attention import TorchBackend
from nanovllm.layers.verify_attention import attend_queries
from tests.layers.paged_cases import paged_case

LENGTHS = [70, 9, 0, 33, 200, 17]


def case_of(queries, device, lengths=LENGTHS, **shape):
    """Each sequence with 1 to `queries` queries, and the step's rows as the kernel has them: `queries` for each.

    Returns (case, the case's rows among the kernel's, query_lens, q with NaN in the rows of no query).
    """
    counts = [1 + i % queries if length else 1 for i, length in enumerate(lengths)]
    counts[0] = queries
    counts = [min(count, length) if length else count for count, length in zip(counts, lengths)]
    case = paged_case(list(zip(counts, lengths)), device=device, **shape)
    TorchBackend().store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    rows = [i * queries + j for i, count in enumerate(counts) for j in range(count)]
    q = torch.full((len(lengths) * queries, *case.q.shape[1:]), float("nan"), dtype=case.q.dtype, device=device)
    q[rows] = case.q
    return case, rows, torch.tensor(counts, dtype=torch.int32, device=device), q


def check(case, rows, query_lens, q, out):
    assert case.error(out[rows]) < (1e-5 if q.dtype == torch.float32 else 3e-3)
    others = sorted(set(range(len(q))) - set(rows))
    assert not out[others].any()  # nor NaN


def verify(case, query_lens, q, **settings):
    out = torch.full_like(q, float("nan"))
    context = case.context
    paged_verify(q, *case.kv_cache, context.block_tables, context.context_lens, query_lens, case.scale, out, **settings)
    return out


@pytest.mark.parametrize("queries", range(1, 10))
def test_any_number_of_drafts(device, queries):
    case, rows, query_lens, q = case_of(queries, device, seed=queries, block_size=16)
    context = case.context
    plain = attend_queries(q, *case.kv_cache, context.block_tables, context.context_lens, query_lens, case.scale)
    check(case, rows, query_lens, q, plain)
    check(case, rows, query_lens, q, verify(case, query_lens, q))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_any_heads(device, group, head_dim):
    queries = (2, 5, 9)[(group + head_dim // 32) % 3]
    case, rows, query_lens, q = case_of(queries, device, lengths=[40, 1, 0, 65], seed=group, num_heads=2 * group,
                                        num_kv_heads=2, head_dim=head_dim, block_size=(4, 3, 256)[group % 3])
    check(case, rows, query_lens, q, verify(case, query_lens, q))


@pytest.mark.parametrize("lengths", [[200, 33, 1, 0], [700], [3] * 20, [0, 0, 129], [513, 512, 33, 34, 35, 36]], ids=str)
@pytest.mark.parametrize("num_shares", [1, 2, 5, 23, 40])
def test_any_number_of_shares(device, lengths, num_shares):
    """A sequence cut between its queries' own positions, too: what a piece holds may be seen by the last query alone."""
    case, rows, query_lens, q = case_of(4, device, lengths, num_heads=2, num_kv_heads=1, block_size=16, seed=num_shares)
    arrived = torch.zeros(num_shares, dtype=torch.int32, device=device)
    for _ in range(2):  # the counters are ready for the next launch
        check(case, rows, query_lens, q, verify(case, query_lens, q, arrived=arrived, num_shares=num_shares))
        assert not arrived.any()


def test_half_precision(device):
    case, rows, query_lens, q = case_of(5, device, dtype=torch.float16, block_size=16, seed=1)
    check(case, rows, query_lens, q, verify(case, query_lens, q))
