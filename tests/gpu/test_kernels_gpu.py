"""Every attention backend on a real GPU against loops in float64, and decode inside a CUDA graph."""

import pytest
import torch

from nanovllm.layers.attention import select_backend
from tests.layers.paged_cases import paged_case

DECODES = [(1, 1), (1, 300), (1, 0), (1, 1500), (1, 256), (1, 63), (1, 700)]
CHUNKS = [(40, 40), (130, 700), (1, 257), (3, 3), (65, 321), (2, 0)]
BATCHES = {"decode": (DECODES, len(DECODES)), "chunk": (CHUNKS, 0), "mixed": (DECODES + CHUNKS, len(DECODES))}
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # tf32 would be near 3e-4


def backend_or_skip(name, dtype, head_dim, block_size):
    try:
        return select_backend(name, device="cuda", dtype=dtype, head_dim=head_dim, block_size=block_size)
    except ValueError as reason:
        pytest.skip(str(reason))


def run(backend, case):
    """Store into a copy of the cache, then attend, with freed memory poisoned so that unwritten output shows."""
    kv_cache = case.kv_cache.clone()
    del_me = torch.full((64 << 20,), float("nan"), device="cuda")
    del del_me
    backend.store(case.k, case.v, *kv_cache, case.context.slot_mapping)
    return backend.attend(case.q, *kv_cache, case.context, case.scale), kv_cache


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["torch", "triton", "flash_attn"])
def test_backend_matches_float64(name, dtype, kind):
    if name == "flash_attn" and dtype == torch.float32:
        pytest.skip("flash_attn has no float32")
    backend = backend_or_skip(name, dtype, 128, 256)
    sequences, num_decodes = BATCHES[kind]
    seed = int(torch.randint(1 << 30, ()))  # fresh inputs every run; the seed is in the failure's locals
    case = paged_case(
        sequences, num_decodes=num_decodes, num_heads=16, num_kv_heads=8, head_dim=128, block_size=256, dtype=dtype,
        device="cuda", seed=seed,
    )  # fmt: skip
    out, _ = run(backend, case)
    assert case.error(out) < TOLERANCE[dtype]
    padding = [i for i, (_, length) in enumerate(sequences) if length == 0]
    starts = case.context.cu_seqlens_q.tolist()
    assert all((out[starts[i] : starts[i + 1]] == 0).all() for i in padding)
    again, _ = run(backend, case)
    if name != "flash_attn":  # the package's own split kernels may sum in another order from run to run
        assert torch.equal(out, again), "the answer moves between runs: a race"
    assert case.error(again) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(8, 8, 64, 16), (8, 4, 64, 1), (16, 4, 32, 32), (16, 2, 128, 64), (12, 4, 64, 48), (4, 2, 16, 16)],
)
def test_triton_shapes(num_heads, num_kv_heads, head_dim, block_size, dtype):
    backend = backend_or_skip("triton", dtype, head_dim, block_size)
    case = paged_case(
        DECODES + CHUNKS, num_decodes=len(DECODES), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        block_size=block_size, dtype=dtype, device="cuda", seed=head_dim + block_size,
    )  # fmt: skip
    out, _ = run(backend, case)
    assert case.error(out) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["triton", "flash_attn"])
def test_store_writes_the_same_cache_as_torch(name):
    case = paged_case(
        DECODES + CHUNKS, num_decodes=len(DECODES), num_heads=8, num_kv_heads=4, head_dim=64, block_size=256,
        dtype=torch.bfloat16, device="cuda",
    )  # fmt: skip
    _, stored = run(backend_or_skip(name, torch.bfloat16, 64, 256), case)
    _, expected = run(backend_or_skip("torch", torch.bfloat16, 64, 256), case)
    assert torch.equal(stored.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("name", ["triton", "flash_attn"])
@pytest.mark.parametrize("batch", [4, 64])
def test_decode_replays_in_a_cuda_graph(name, batch):
    """Captured once with padding rows and a large bound on the context, replayed with other lengths and contents."""
    backend = backend_or_skip(name, torch.bfloat16, 128, 256)
    shape = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "block_size": 256, "dtype": torch.bfloat16}

    def fresh(seed):
        lengths = torch.randint(1, 900, (batch,), generator=torch.Generator().manual_seed(seed)).tolist()
        sequences = [(1, 0 if i % 4 == 3 else length) for i, length in enumerate(lengths)]
        return paged_case(sequences, num_decodes=batch, device="cuda", seed=seed, **shape)

    num_blocks, width = 4 * batch + 8, 16
    fixed = fresh(0)
    kv_cache = torch.zeros(2, num_blocks, 256, 8, 128, dtype=torch.bfloat16, device="cuda")
    q, k, v = fixed.q.contiguous(), fixed.k.contiguous(), fixed.v.contiguous()
    context = fixed.context
    context.block_tables = torch.zeros(batch, width, dtype=torch.int32, device="cuda")
    context.slot_mapping = torch.full((batch,), -1, dtype=torch.int64, device="cuda")
    context.context_lens = torch.zeros(batch, dtype=torch.int32, device="cuda")
    context.max_seqlen_k = width * 256

    def step():
        backend.store(k, v, *kv_cache, context.slot_mapping)
        return backend.attend(q, *kv_cache, context, fixed.scale)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    for seed in (1, 2, 3):
        case = fresh(seed)
        kv_cache.fill_(float("nan"))
        kv_cache[:, : case.kv_cache.shape[1]] = case.kv_cache
        q.copy_(case.q), k.copy_(case.k), v.copy_(case.v)
        context.block_tables.zero_()
        context.block_tables[:, : case.context.block_tables.shape[1]] = case.context.block_tables
        context.slot_mapping.copy_(case.context.slot_mapping)
        context.context_lens.copy_(case.context.context_lens)
        out.fill_(float("nan"))
        graph.replay()
        assert case.error(out) < TOLERANCE[torch.bfloat16]


def test_auto_takes_a_gpu_backend():
    chosen = select_backend("auto", device="cuda", dtype=torch.bfloat16, head_dim=128, block_size=256)
    assert chosen.name in ("flash_attn", "triton")
    exact = select_backend("auto", device="cuda", dtype=torch.float32, head_dim=128, block_size=16)
    assert exact.name == "triton"
