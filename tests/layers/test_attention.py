"""The torch backend against loops in float64, the choice of a backend, and the Attention module."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from nanovllm.layers.attention import Attention, FlashAttnBackend, TorchBackend, select_backend
from nanovllm.utils.context import Context
from tests.layers.paged_cases import paged_case

MIXED = [(1, 1), (1, 9), (1, 23), (1, 0), (5, 5), (3, 12), (7, 8), (1, 17)]  # 4 decodes, then chunks


def run(case, backend=None):
    backend = backend or TorchBackend()
    backend.store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    return backend.attend(case.q, *case.kv_cache, case.context, case.scale)


@pytest.mark.parametrize("block_size", [1, 3, 4, 16, 256])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4, 8])
def test_mixed_batch_matches_loops(block_size, num_kv_heads):
    case = paged_case(MIXED, num_decodes=4, num_heads=8, num_kv_heads=num_kv_heads, block_size=block_size, seed=num_kv_heads)
    assert case.error(run(case)) < 1e-6


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_blocks_in_one_run_match_loops_too(head_dim):
    case = paged_case(MIXED, num_decodes=4, head_dim=head_dim, consecutive=True, seed=head_dim)
    assert case.error(run(case)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near(dtype):
    case = paged_case(MIXED, num_decodes=4, dtype=dtype, seed=3)
    out = run(case)
    assert out.dtype == dtype
    assert case.error(out) < 1e-2


def test_padding_rows_are_zero_and_store_nothing():
    case = paged_case([(1, 6), (1, 0), (4, 0)], num_decodes=2)
    stored_before = int(case.kv_cache.isfinite().all(-1).all(-1).sum())
    out = run(case)
    assert (out[1:] == 0).all()
    assert int(case.kv_cache.isfinite().all(-1).all(-1).sum()) == stored_before + 2  # one key, one value


def test_store_puts_each_token_in_its_slot():
    case = paged_case(MIXED, num_decodes=4, block_size=3, seed=5)
    before = case.kv_cache.clone()
    TorchBackend().store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    expected = before.flatten(1, 2)
    for token, slot in enumerate(case.context.slot_mapping.tolist()):
        if slot >= 0:
            expected[0, slot], expected[1, slot] = case.k[token], case.v[token]
    assert torch.equal(case.kv_cache.flatten(1, 2).nan_to_num(7.0), expected.nan_to_num(7.0))


def test_a_sequence_gets_the_same_answer_alone_and_in_a_batch():
    case = paged_case(MIXED, num_decodes=4, seed=6)
    together = run(case)
    context = case.context
    for i in range(len(MIXED)):
        start, end = context.cu_seqlens_q[i : i + 2].tolist()
        context_alone = type(context)(
            cu_seqlens_q=torch.tensor([0, end - start]), context_lens=context.context_lens[i : i + 1],
            block_tables=context.block_tables[i : i + 1], slot_mapping=context.slot_mapping[start:end],
            max_seqlen_q=end - start, max_seqlen_k=int(context.context_lens[i]), num_decodes=int(i < 4),
            last_rows=torch.tensor([end - start - 1]),
        )  # fmt: skip
        alone = TorchBackend().attend(case.q[start:end], *case.kv_cache, context_alone, case.scale)
        assert torch.equal(alone, together[start:end])


def test_attention_module_stores_then_attends():
    case = paged_case(MIXED, num_decodes=4, seed=8)
    attention = Attention(4, 2, 32, case.scale, TorchBackend())
    out = attention(case.q, case.k, case.v, case.kv_cache, case.context)
    assert out.shape == (len(case.q), 4 * 32)
    assert case.error(out) < 1e-6


def test_attention_module_refuses_uneven_groups():
    with pytest.raises(ValueError, match="num_heads 6 is not a multiple of num_kv_heads 4"):
        Attention(6, 4, 32, 1.0, TorchBackend())


def test_scale_is_used():
    case = paged_case([(1, 9)], num_decodes=1)
    case.scale = 0.0  # every key weighs the same: the answer is the mean of the values
    out = run(case)
    keys = case.context.block_tables[0].tolist()
    values = torch.cat([case.kv_cache[1, block] for block in keys[:3]])[:9]
    torch.testing.assert_close(out[0], values.mean(0).repeat_interleave(2, dim=0))


def choose(name="auto", device="cpu", dtype=torch.bfloat16, head_dim=128, block_size=256):
    return select_backend(name, device=device, dtype=dtype, head_dim=head_dim, block_size=block_size)


@pytest.fixture
def fake_packages(monkeypatch):
    """Import errors by module name, in place of what is installed here; backends are not really built."""
    from nanovllm.layers import attention

    missing: dict = {}
    monkeypatch.setattr(attention, "import_error", missing.get)
    monkeypatch.setattr(attention, "compute_capability", lambda device: missing.get("capability", (9, 0)))
    monkeypatch.setattr(attention.FlashAttnBackend, "__init__", lambda self: None)
    monkeypatch.setattr(attention.TritonBackend, "__init__", lambda self: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return missing


def test_auto_takes_the_best_that_fits(fake_packages):
    assert choose(device="cpu").name == "torch"
    assert choose(device="cuda").name == "triton"
    assert choose(device="cuda", dtype=torch.float32).name == "triton"
    assert choose(device="cuda", head_dim=48).name == "torch"
    fake_packages["triton"] = "ModuleNotFoundError: No module named 'triton'"
    assert choose(device="cuda").name == "flash_attn"
    assert choose(device="cuda", block_size=16).name == "torch"
    fake_packages["flash_attn"] = "ImportError: built for another torch"
    assert choose(device="cuda").name == "torch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "xformers"}, r"'xformers' is unknown; use one of 'auto', 'triton', 'flash_attn', 'torch', 'cpu'"),
        ({"name": "flash_attn"}, r"needs a CUDA device, not 'cpu'; use attention_backend='torch'"),
        ({"name": "triton"}, r"needs a CUDA device, not 'cpu'"),
        ({"name": "flash_attn", "device": "cuda", "block_size": 16}, r"block size 16 .* kvcache_block_size=256"),
        ({"name": "flash_attn", "device": "cuda", "dtype": torch.float32}, r"float32 .* dtype='bfloat16'"),
        ({"name": "flash_attn", "device": "cuda", "head_dim": 32}, r"head_dim 32 "),
        ({"name": "triton", "device": "cuda", "head_dim": 48}, r"head_dim 48 "),
        ({"name": "triton", "device": "cuda", "dtype": torch.float64}, r"float64 "),
    ],
)
def test_refusals_name_what_is_missing(fake_packages, options, message):
    with pytest.raises(ValueError, match=message):
        choose(**options)


@pytest.mark.parametrize("name", ["flash_attn", "triton"])
def test_old_gpus_are_refused_and_auto_avoids_them(fake_packages, name):
    fake_packages["capability"] = (7, 5)
    with pytest.raises(ValueError, match=r"compute capability 7.5 is below 8.0; use attention_backend='torch'"):
        choose(name, device="cuda")
    assert choose(device="cuda").name == "torch"


@pytest.mark.parametrize("module", ["flash_attn", "triton"])
def test_missing_package_is_named_with_its_remedy(fake_packages, module):
    fake_packages[module] = "ModuleNotFoundError: not here"
    with pytest.raises(ValueError, match=rf"{module} cannot be imported .*not here.*pip install"):
        choose(module, device="cuda")


def paged_answer(q, k_cache, v_cache, rows, lengths, table, scale):
    """What the flash-attn package documents for pages, by way of the reference: causal, aligned bottom right."""
    assert table.shape[0] == len(lengths) == len(rows) - 1
    context = Context(
        cu_seqlens_q=torch.tensor(rows), context_lens=lengths, block_tables=table, slot_mapping=None,
        max_seqlen_q=0, max_seqlen_k=0, num_decodes=0, last_rows=None,
    )  # fmt: skip
    return TorchBackend().attend(q, k_cache, v_cache, context, scale)


def test_flash_attn_gets_decodes_and_chunks_as_its_api_wants_them(monkeypatch):
    """The package runs only on a GPU, so two stand-ins hold this side of its interface, as its docstrings give it."""
    calls = []

    def with_kvcache(q, k_cache, v_cache, *, cache_seqlens, block_table, softmax_scale, causal):
        calls.append("decode")
        assert causal and q.shape[1] == 1 and cache_seqlens.dtype == block_table.dtype == torch.int32
        rows = list(range(len(q) + 1))
        return paged_answer(q[:, 0], k_cache, v_cache, rows, cache_seqlens, block_table, softmax_scale)[:, None]

    def varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal, block_table):
        calls.append("chunk")
        assert causal and cu_q.dtype == cu_k.dtype == torch.int32 and cu_q[0] == cu_k[0] == 0
        assert cu_q[-1] == len(q) and cu_q.diff().max() <= max_q and cu_k.diff().max() <= max_k
        return paged_answer(q, k, v, cu_q.tolist(), cu_k.diff(), block_table, softmax_scale)

    package = SimpleNamespace(flash_attn_with_kvcache=with_kvcache, flash_attn_varlen_func=varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "triton", None)  # so it stores without Triton, which a CPU could not run
    backend = FlashAttnBackend()
    for num_decodes, sequences in ((4, MIXED), (4, MIXED[:4]), (0, MIXED[4:])):
        case = paged_case(sequences, num_decodes=num_decodes, block_size=256, seed=num_decodes)
        assert case.error(run(case, backend)) < 1e-6
    assert calls == ["decode", "chunk", "decode", "chunk"]


def test_import_error_reports_a_package_that_is_not_there(monkeypatch):
    from nanovllm.layers.attention import import_error

    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert "flash_attn" in import_error("flash_attn")
    assert import_error("math") is None


def test_reference_helper_notices_a_wrong_answer():
    case = paged_case(MIXED, num_decodes=4)
    out = run(case)
    assert case.error(out * 1.01) > 1e-3
    out[0, 0, 0] = float("nan")
    assert math.isnan(case.error(out))
