"""An engine that is safe in Jupyter: no globals, no leaks, interruptible, several at once."""

import gc
import os
import signal
import subprocess
import sys
import weakref

import pytest
import torch

from nanovllm import LLM, EngineError, SamplingParams
from nanovllm.engine.sequence import Sequence
from nanovllm.outputs import CompletionOutput, RequestOutput, Usage

from .checkpoints import random_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"))


def test_no_global_is_touched_defect_1(folder):
    before = torch.get_default_dtype(), torch.get_default_device(), torch.get_rng_state(), dict(os.environ)
    with LLM(folder, device="cpu") as llm:
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, seed=1), use_tqdm=False)
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4), use_tqdm=False)
    after = torch.get_default_dtype(), torch.get_default_device(), torch.get_rng_state(), dict(os.environ)
    assert before[:2] == after[:2] and torch.equal(before[2], after[2]) and before[3] == after[3]
    assert not torch.distributed.is_initialized()


def test_two_engines_with_different_block_sizes_defect_23(folder):
    with LLM(folder, device="cpu", kvcache_block_size=1) as a, LLM(folder, device="cpu", kvcache_block_size=7) as b:
        prompt = list(range(20))
        x, y = a.engine.add_request(prompt, GREEDY), b.engine.add_request(prompt, GREEDY)
        while a.engine.has_unfinished or b.engine.has_unfinished:
            a.engine.step(), b.engine.step()
        assert x.output_token_ids == y.output_token_ids and len(x.output_token_ids) == 6


def test_rebinding_the_name_frees_the_old_engine_defect_2(folder):
    llm = LLM(folder, device="cpu")
    llm.generate([[1, 2]], GREEDY, use_tqdm=False)
    gc.collect()
    gc.disable()  # reference counts alone must do it: a cycle would keep a GPU's memory until some later collection
    try:
        cache = weakref.ref(llm.engine.model_runner.kv_cache)
        weights = weakref.ref(llm.engine.model_runner.model)
        llm = LLM(folder, device="cpu")
        assert cache() is None and weights() is None
    finally:
        gc.enable()
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="it was closed"):
        llm.generate([[1]])
    assert repr(llm).endswith("closed)")


def test_no_atexit_hook_keeps_the_process_alive_defect_2(folder):
    code = f"from nanovllm import LLM; llm = LLM({str(folder)!r}, device='cpu'); llm.generate([[1]], use_tqdm=False)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, timeout=120, encoding="utf-8")
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("looks_ahead", [False, True])
@pytest.mark.parametrize("place", ["schedule", "forward", "collect", "update"])
def test_interrupt_aborts_and_leaves_the_engine_usable_defect_3(folder, place, looks_ahead, monkeypatch):
    with LLM(folder, device="cpu", async_scheduling=looks_ahead) as llm:
        expected = llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)[0].token_ids
        owner = llm.engine.scheduler if place in ("schedule", "update") else llm.engine.model_runner
        original, calls = getattr(owner, place), []

        def interrupted(*arguments):
            calls.append(place)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)  # what Jupyter's stop button sends; raised before the next line
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.generate([[5, 6]] * 4, SamplingParams(max_tokens=400, ignore_eos=True), use_tqdm=False)
        assert len(calls) == 5
        assert not llm.engine.has_unfinished
        llm.engine.check_integrity()
        assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
        outputs = llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
        assert [o.token_ids for o in outputs] == [expected]


def test_a_failing_model_leaves_the_engine_usable(folder):
    with LLM(folder, device="cpu") as llm:
        forward, calls = llm.engine.model_runner.forward, []

        def failing(inputs):
            calls.append(1)
            if len(calls) >= 3:
                raise RuntimeError("the model broke")
            return forward(inputs)

        llm.engine.model_runner.forward = failing
        with pytest.raises(RuntimeError, match="the model broke"):
            llm.generate([[1, 2, 3]] * 3, GREEDY, use_tqdm=False)
        assert not llm.engine.has_unfinished
        del llm.engine.model_runner.forward
        assert len(llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)[0].token_ids) == 6


def test_leaving_a_stream_early_aborts_its_requests():
    with LLM(device="cpu") as llm:
        for i, _ in enumerate(llm.stream("Once upon a time", SamplingParams(max_tokens=200, ignore_eos=True))):
            if i == 3:
                break
        gc.collect()
        assert not llm.engine.has_unfinished


def test_reprs_are_short_and_worth_reading(folder):
    with LLM(folder, device="cpu", kvcache_block_size=4, num_kvcache_blocks=8, max_model_len=32) as llm:
        text = repr(llm)
        for fact in ("cpu", "float32", "attention=torch", "8 blocks x 4 tokens", "waiting=0"):
            assert fact in text
        seq = llm.engine.add_request([1, 2, 3, 4, 5], GREEDY)
        assert repr(seq) == "Sequence(0, waiting, prompt=5, output=0, computed=0, blocks=[])"
        llm.engine.step()
        assert repr(seq) == "Sequence(0, running, prompt=5, output=1, computed=5, blocks=[0, 1])"
        assert "2 in use" in repr(llm.engine.block_manager)
        llm.engine.abort(0)
    output = RequestOutput(3, None, [1, 2], [CompletionOutput(0, "x" * 100, [5], "stop")], Usage(2, 1, 0))
    assert repr(output) == f"RequestOutput(3, {'x' * 57 + '...'!r}, 2 prompt + 1 tokens, finish_reason='stop')"
    assert output["text"] == output.text and output["token_ids"] == [5]
    with pytest.raises(KeyError, match="a RequestOutput has"):
        output["txt"]
    assert all(len(repr(x)) < 300 for x in (Sequence(0, [1] * 5000), output)) and len(text) < 400
