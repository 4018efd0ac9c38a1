"""Going through the steps of a start beforehand changes nothing but what is compiled, and keeps no engine from starting."""

import logging
import threading

import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.engine.compile_ahead import compile_ahead
from tests.checkpoints import random_checkpoint

triton = pytest.importorskip("triton")

PARAMS = SamplingParams(temperature=0.8, top_k=5, seed=1, max_tokens=3, ignore_eos=True)
SETTINGS = dict(device="cpu", attention_backend="triton", max_num_seqs=5, max_num_batched_tokens=32, num_kvcache_blocks=8,
                max_model_len=64)


@pytest.fixture
def memory_is_garbage():
    """What torch hands out without filling it is full of NaN and of the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["Qwen3", "Qwen3Moe"])
def llm(request, tmp_path):
    with LLM(random_checkpoint(tmp_path / "model", family=request.param), **SETTINGS) as llm:
        yield llm


def test_the_engine_is_as_it_was(llm, memory_is_garbage, caplog):
    """And torch uses nothing as an index that a kernel would have written: on a GPU that would end the process."""
    runner = llm.engine.model_runner
    expected = llm.generate([[1, 2, 3]], PARAMS, use_tqdm=False)[0].token_ids
    held, cache = dict(vars(runner)), runner.kv_cache.clone()
    compile_ahead(runner, llm.config)
    assert caplog.messages == []
    assert vars(runner) == held and torch.equal(runner.kv_cache, cache)
    assert llm.generate([[1, 2, 3]], PARAMS, use_tqdm=False)[0].token_ids == expected


@pytest.mark.unmeasured
def test_every_kernel_of_the_engines_steps_is_among_them(llm, monkeypatch):
    """With each of its constants: what a start leaves out would be compiled when the first requests wait for it."""
    launched, warmed, launch = set(), set(), triton.KernelInterface.__getitem__

    def noted(kernel, grid):
        def launch_it(*args, **constants):
            launched.add((kernel.__name__, *sorted(constants.items())))
            return launch(kernel, grid)(*args, **constants)
        return launch_it

    monkeypatch.setattr(triton.KernelInterface, "__getitem__", noted)
    runner = llm.engine.model_runner
    runner.graphs = runner.decode_graphs(llm.config, capture=False)
    runner.step_graphs = runner.mixed_step_graphs(llm.config, capture=False)
    for count in (1, 2, 4, 5):
        llm.generate([[1 + i, 2, 3] for i in range(count)] + [list(range(20))], PARAMS, use_tqdm=False)
    assert len({name for name, *_ in launched}) > 8
    monkeypatch.setattr(triton.KernelInterface, "warmup", lambda kernel, *args, grid, **constants: warmed.add(
        (kernel.__name__, *sorted(constants.items()))))
    compile_ahead(runner, llm.config)
    assert launched - warmed == set()


@pytest.mark.parametrize("broken", ["mode", "launch", "step"])
def test_what_breaks_is_said_and_the_engine_starts(llm, monkeypatch, caplog, broken):
    runner, launch = llm.engine.model_runner, triton.KernelInterface.__getitem__
    if broken == "mode":
        monkeypatch.delattr(triton, "AsyncCompileMode")
    elif broken == "launch":
        monkeypatch.delattr(triton.KernelInterface, "warmup")
    else:
        monkeypatch.setattr(runner, "decode_graphs", lambda *args, **kwargs: 1 / 0)
    with caplog.at_level(logging.WARNING, "nanovllm"):
        compile_ahead(runner, llm.config)
    [message] = caplog.messages
    reason = {"mode": "AsyncCompileMode", "launch": "warmup", "step": "ZeroDivisionError"}[broken]
    assert "compiled one by one" in message and reason in message
    assert triton.KernelInterface.__getitem__ is launch
    assert len(llm.generate([[1, 2, 3]], PARAMS, use_tqdm=False)[0].token_ids) == 3


def test_nothing_is_launched_but_by_other_threads(memory_is_garbage):
    from nanovllm.kernels.compile_together import compile_together
    from nanovllm.kernels.silu_and_mul import silu_and_mul

    x = torch.randn(3, 2 * 48, device="cuda" if torch.cuda.is_available() else "cpu")
    found = {}

    def launches() -> None:
        found["here"] = silu_and_mul(x)
        elsewhere = threading.Thread(target=lambda: found.update(elsewhere=silu_and_mul(x)))
        elsewhere.start()
        elsewhere.join()

    compile_together(launches)
    expected = torch.nn.functional.silu(x[:, :48]) * x[:, 48:]
    assert found["here"].isnan().all()
    assert torch.allclose(found["elsewhere"], expected, atol=1e-5)
    assert torch.allclose(silu_and_mul(x), expected, atol=1e-5)


def test_each_kernel_is_loaded_once_by_threads_and_one_that_cannot_be_is_left_for_its_launch(monkeypatch):
    from nanovllm.kernels.compile_together import compile_together
    from nanovllm.kernels.silu_and_mul import silu_and_mul

    loaded = []

    class Compiled:
        def __getitem__(self, grid):
            loaded.append((self, threading.get_ident()))
            raise RuntimeError("out of resource: shared memory")

    class Future:
        def result(self):
            return Compiled()

    kernels = iter([first := Compiled(), first, Future()])
    monkeypatch.setattr(triton.KernelInterface, "warmup", lambda *args, **options: next(kernels))
    x = torch.randn(3, 2 * 48, device="cuda" if torch.cuda.is_available() else "cpu")
    compile_together(lambda: [silu_and_mul(x) for _ in range(3)])
    assert len(loaded) == 2 and loaded[0][0] is first and loaded[1][0] is not first
    assert threading.get_ident() not in {thread for _, thread in loaded}
