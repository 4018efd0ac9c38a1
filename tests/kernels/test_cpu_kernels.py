"""The CPU kernels against loops in float64 and against the plain model, in steps of few tokens and of many."""

import ctypes
import os
import shutil
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from nanovllm import LLM, InvalidArgument, SamplingParams
from nanovllm.config import OFFLINE_MODEL
from nanovllm.errors import EngineError
from nanovllm.kernels.cpu import library
from nanovllm.layers.attention import select_backend
from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.layers.cpu_attention import CPUBackend
from nanovllm.models import fused_cpu
from nanovllm.models.registry import model_class
from tests.checkpoints import TINY, TINY_EXPERTS
from tests.layers.paged_cases import paged_case

if not shutil.which(os.environ.get("CXX", "c++")):
    pytest.skip("there is no C++ compiler", allow_module_level=True)

MIXED = [(1, 1), (1, 9), (1, 230), (1, 0), (5, 5), (3, 12), (70, 80), (1, 17), (40, 300)]  # 4 decodes, then chunks
CONFIG = SimpleNamespace(**TINY | {"intermediate_size": 96, "hidden_act": "silu", "rms_norm_eps": 1e-6})
FAMILIES = {"Qwen3": {}, "Llama": {"mlp_bias": False}, "Qwen2": {}, "Llama with all biases": {
    "attention_bias": True, "mlp_bias": True}, "Mistral": {"sliding_window": None, "mlp_bias": False}}
EXPERTS = TINY_EXPERTS | {"mlp_only_layers": [], "decoder_sparse_step": 1}
FAMILIES |= {"Qwen3Moe": EXPERTS, "Qwen3Moe with a dense layer": EXPERTS | {"mlp_only_layers": [0], "norm_topk_prob": False}}
BATCHES = {"one": [(1, 77)], "few": [(1, 17), (1, 9), (1, 130), (1, 3), (1, 0), (2, 9)], "chunk": [(7, 90)],
           "many": [(1, 17), (1, 70), (30, 90), (1, 0), (9, 9)]}


def run(case, backend):
    backend.store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    return backend.attend(case.q, *case.kv_cache, case.context, case.scale)


@pytest.mark.parametrize("block_size", [1, 3, 16, 256])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 8])
def test_attention_matches_loops(block_size, num_kv_heads):
    case = paged_case(MIXED, num_decodes=4, num_heads=8, num_kv_heads=num_kv_heads, block_size=block_size, seed=num_kv_heads)
    assert case.error(run(case, CPUBackend())) < 2e-6


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_attention_of_other_heads_and_numbers(head_dim, dtype, limit):
    case = paged_case(MIXED, num_decodes=4, head_dim=head_dim, dtype=dtype, seed=head_dim)
    out = run(case, CPUBackend())
    assert out.dtype == dtype and case.error(out) < limit


@pytest.mark.parametrize("num_heads", [32, 33, 64])
def test_attention_of_many_heads_for_one_key(num_heads):
    case = paged_case(MIXED, num_decodes=4, num_heads=num_heads, num_kv_heads=1)
    assert case.error(run(case, CPUBackend())) < 2e-6


def test_padding_rows_are_zero_and_a_sequence_is_the_same_alone():
    case = paged_case([(1, 6), (1, 0), (4, 0), (1, 200)], num_decodes=2)
    out = run(case, CPUBackend())
    assert (out[1:6] == 0).all() and out[0].any() and out[6].any()
    context = case.context
    alone = type(context)(torch.tensor([0, 1], dtype=torch.int32), context.context_lens[:1], context.block_tables[:1],
                          context.slot_mapping[:1], 1, 6, 1, torch.tensor([0]))
    assert torch.equal(CPUBackend().attend(case.q[:1], *case.kv_cache, alone, case.scale), out[:1])


@pytest.mark.parametrize("where", ["key", "value", "query"])
def test_what_is_not_a_number_stays_none_and_harms_no_other_sequence(where):
    case = paged_case([(1, 20), (1, 90), (20, 70)], num_decodes=2, seed=4)
    clean = run(case, CPUBackend())
    broken = {"key": case.k, "value": case.v, "query": case.q}[where]
    broken[1, ..., 0] = float("nan")
    out = run(case, CPUBackend())
    assert out[1].isnan().any(-1).all() and torch.equal(out[0], clean[0]) and torch.equal(out[2:], clean[2:])


def model_and_batch(family, sequences, dtype, seed=0, packs=True):
    torch.manual_seed(seed)
    kind, overrides = family.split()[0], FAMILIES.get(family, {})
    model = model_class([f"{kind}ForCausalLM"])(SimpleNamespace(**vars(CONFIG) | overrides), TorchBackend(), dtype=dtype).eval()
    for parameter in model.parameters():  # norms far from one, as trained ones are
        parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.uniform_(0.1, 4)
        if packs:
            parameter.copy_(parameter.bfloat16())
    case = paged_case(sequences, num_decodes=0, num_heads=4, num_kv_heads=2, head_dim=32, block_size=16, dtype=dtype, seed=seed)
    positions = torch.tensor([length - n + i if length else 0 for n, length in sequences for i in range(n)])
    tokens = torch.randint(96, (len(positions),))
    return model, (tokens, positions, torch.randn(2, *case.kv_cache.shape).to(dtype), case.context)


@torch.inference_mode()
@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packs", [True, False], ids=["bfloat16 weights", "float32 weights"])
def test_the_model_is_the_plain_one(family, sequences, packs):
    model, (tokens, positions, cache, context) = model_and_batch(family, sequences, torch.float32, packs=packs)
    fused = fused_cpu.FusedCPUModel(model, block_size=16)
    assert fits(model) and (fused.form != library.FLOATS) == packs
    own_cache = cache.clone()
    expected, found = model(tokens, positions, cache, context), fused(tokens, positions, own_cache, context)
    real = torch.cat([torch.full((n,), length > 0) for n, length in sequences])
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=5e-4)
    torch.testing.assert_close(own_cache, cache, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.compute_logits(found[real]), model.compute_logits(expected[real]), rtol=1e-4, atol=2e-3)


FORMS = {"floats": library.FLOATS, "halves": library.HALVES, "tiles": library.TILES}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """How weights lie and who multiplies; the matrix unit where there is one."""
    if request.param == "tiles" and not library.library().has_tiles():
        pytest.skip("this CPU has no matrix unit (AMX)")
    if request.param == "halves":
        monkeypatch.setattr(fused_cpu, "TILES", library.HALVES)
    return FORMS[request.param]


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 17, 32, 33, 70, 600])
@pytest.mark.parametrize("inputs, features", [(16, 16), (96, 80), (64, 97)])
def test_products(form, rows, inputs, features, threads):
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, inputs), torch.randn(features, inputs).bfloat16().float()
    padded = -(-features // 16) * 16
    panels = library.panels_of(weight, form)
    y = torch.full((rows, padded), float("nan"))
    library.library().product_of(
        ctypes.c_void_p(x.data_ptr()), ctypes.byref(library.Weight(panels.data_ptr(), None, inputs, padded)),
        ctypes.c_void_p(y.data_ptr()), ctypes.c_long(rows), ctypes.c_long(padded), form, 3, threads)
    torch.testing.assert_close(y[:, :features].double(), x.double() @ weight.T.double(), rtol=0, atol=2e-5)
    assert (y[:, features:] == 0).all()


@torch.inference_mode()
@pytest.mark.parametrize("limit", [fused_cpu.BYTES_OF_A_CORE, 0], ids=["in cache", "too large for it"])
@pytest.mark.parametrize("family", ["Qwen3", "Qwen3Moe with a dense layer"])
def test_a_row_is_the_same_alone_and_among_others(family, form, threads, limit, monkeypatch):
    """Few rows and many, shared by the threads or a block for each, come to the same bits."""
    monkeypatch.setattr(fused_cpu, "BYTES_OF_A_CORE", limit)
    sequences = [(1, 17), (300, 300), (1, 70), (9, 9), (40, 90)]
    model, batch = model_and_batch(family, sequences, torch.float32, packs=form != library.FLOATS)
    tokens, positions, cache, context = batch
    fused = fused_cpu.FusedCPUModel(model, block_size=16)
    assert fused.form == form
    together, of_all = cache.clone(), cache.clone()
    x = fused(tokens, positions, together, context)
    logits = fused.compute_logits(x)
    torch.testing.assert_close(x, model(tokens, positions, of_all, context), rtol=1e-4, atol=1e-3)
    starts = context.cu_seqlens_q
    for i in range(len(sequences)):
        a, b = starts[i:i + 2].tolist()
        alone = type(context)(torch.tensor([0, b - a], dtype=torch.int32), context.context_lens[i:i + 1],
                              context.block_tables[i:i + 1], context.slot_mapping[a:b], b - a, sequences[i][1], 0,
                              torch.tensor([b - a - 1]))
        own = cache.clone()
        found = fused(tokens[a:b], positions[a:b], own, alone)
        assert torch.equal(found, x[a:b]) and torch.equal(fused.compute_logits(found[-1:]), logits[b - 1:b])
    assert not torch.equal(together, cache)


@torch.inference_mode()
@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
def test_bfloat16_is_no_farther_from_the_truth_than_the_plain_model(sequences):
    model, batch = model_and_batch("Qwen3", sequences, torch.bfloat16)
    exact, _ = model_and_batch("Qwen3", sequences, torch.float32)
    tokens, positions, cache, context = batch
    real = torch.cat([torch.full((n,), length > 0) for n, length in sequences])
    truth = exact(tokens, positions, cache.float(), context)[real]
    plain = (model(tokens, positions, cache.clone(), context)[real].float() - truth).norm()
    fused = fused_cpu.FusedCPUModel(model, block_size=16)(tokens, positions, cache.clone(), context)[real].float()
    assert 0 < plain < 0.1 * truth.norm() and (fused - truth).norm() < 1.5 * plain


def fits(model):
    return fused_cpu.fits(model)


def test_odd_sizes_run_their_plain_modules():
    def fits_with(kind, **overrides):
        return fits(model_class([f"{kind}ForCausalLM"])(SimpleNamespace(**vars(CONFIG) | overrides), TorchBackend()))

    assert fits_with("Qwen3") and not fits_with("Qwen3", intermediate_size=100)
    assert fits_with("Qwen3Moe", **EXPERTS) and not fits_with("Qwen3Moe", **EXPERTS | {"moe_intermediate_size": 40})


def test_the_model_with_experts_says_what_it_says_on_the_plain_backend():
    params = [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), SamplingParams(seed=3, max_tokens=30)]
    texts = {}
    for backend in ("torch", "cpu"):
        with LLM(OFFLINE_MODEL.with_name("moe"), device="cpu", dtype="float32", attention_backend=backend) as llm:
            outputs = llm.generate(["Once upon a time", "A hen and a bell " * 30], params, use_tqdm=False)
            texts[backend] = [output.token_ids for output in outputs]
            assert backend == "torch" or isinstance(llm.engine.model_runner.model, fused_cpu.FusedCPUModel)
    assert texts["cpu"] == texts["torch"]


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_the_engine_says_what_it_says_on_the_plain_backend(looks_ahead):
    prompts = ["Once upon a time", "A hen and a bell", "Tell me a story about a fox who found a kite in the snow. " * 5, "Hi"]
    params = [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), SamplingParams(seed=3, max_tokens=30, top_p=0.9),
              SamplingParams(temperature=0, max_tokens=20, logprobs=2, prompt_logprobs=1),
              SamplingParams(seed=1, max_tokens=25, repetition_penalty=1.2, n=2)]

    def texts(backend, **settings):
        with LLM(device="cpu", dtype="float32", attention_backend=backend, kvcache_block_size=8, num_kvcache_blocks=300,
                 max_num_batched_tokens=64, async_scheduling=looks_ahead, **settings) as llm:
            outputs = [llm.generate(prompts, params, use_tqdm=False) for _ in range(2)][1]  # with the prefix cached
            return [[sample.token_ids for sample in output.outputs] for output in outputs]

    plain = texts("torch")
    assert texts("cpu") == plain
    assert texts("cpu", speculative_config={"method": "ngram", "num_speculative_tokens": 3}) == plain


@pytest.mark.parametrize("settings, words", [
    ({"dtype": "float16"}, "float16 is not float32 or bfloat16; use one of them or 'torch'"),
    ({"head_dim": 80}, "head_dim 80 is not a multiple of 32 up to 256; use 'torch'"),
    ({"device": "cuda"}, "needs device='cpu'")])
def test_what_it_cannot_do_is_refused(settings, words):
    asked = {"device": "cpu", "dtype": "float32", "head_dim": 64, "block_size": 16} | settings
    with pytest.raises(InvalidArgument, match=words):
        select_backend("cpu", **asked | {"dtype": getattr(torch, asked["dtype"])})


@pytest.fixture
def new_library(monkeypatch, tmp_path):
    """Compiled anew where there is nothing yet: as it is written and not made fast, which takes a compiler most of its time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "FLAGS", tuple(flag.replace("-O3", "-O0") for flag in library.FLAGS))
    library.library.cache_clear()
    yield library.library
    library.library.cache_clear()


def test_it_is_compiled_once_into_the_users_cache(new_library, tmp_path, monkeypatch):
    assert isinstance(new_library(), ctypes.CDLL)
    file, = (tmp_path / "nanovllm").iterdir()
    new_library.cache_clear()
    monkeypatch.setattr(library, "_compile", None)  # not called again
    assert new_library()["attention_float32"] and file.suffix == ".so"


def test_a_broken_file_in_the_cache_is_made_anew(new_library, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(library, "_compile", lambda compiler, file: file.write_bytes(b"\x7fELF and no more"))
        with pytest.raises(OSError, match=r"file too short|invalid ELF|not a mach-o|header"):
            new_library()
    file, = (tmp_path / "nanovllm").iterdir()
    assert new_library()["attention_float32"] and file.stat().st_size > 1000


def test_a_forked_child_computes_with_threads_of_its_own():
    """Its parent's threads are not there, and nothing waits for them. torch's own would, so the child leaves torch alone."""
    kernels = library.library()
    x, panels, y = torch.randn(70, 64), library.panels_of(torch.randn(96, 64), library.FLOATS), torch.zeros(70, 96)
    weight, (x_at, y_at) = library.Weight(panels.data_ptr(), None, 64, 96), (ctypes.c_void_p(t.data_ptr()) for t in (x, y))
    numbers = y.numpy()

    def compute():
        numbers[:] = 0
        kernels.product_of(x_at, ctypes.byref(weight), y_at, ctypes.c_long(70), ctypes.c_long(96), library.FLOATS, 3, 3)
        return numbers.tobytes()

    expected = compute()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        os._exit(0 if compute() == expected else 1)
    assert any(expected) and os.waitpid(child, 0)[1] == 0


def test_a_user_without_a_home_compiles_into_a_folder_of_the_process(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(library.Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert library._cache_folder().parent == tmp_path


@pytest.mark.parametrize("compiler, words", [("no-such-compiler", "cannot be run"), ("false", "could not be compiled")])
def test_without_a_compiler_the_remedy_is_named(new_library, monkeypatch, compiler, words):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(EngineError, match=f"{words}.*attention_backend='torch'"):
        LLM(device="cpu", attention_backend="cpu")
