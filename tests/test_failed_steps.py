"""A step that fails is tried again without the requests that make it fail: they end, and nobody else notices."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastapi.testclient import TestClient

from nanovllm import LLM, AsyncLLM, SamplingParams
from nanovllm.engine.launched import Launched
from nanovllm.errors import RequestFailed
from nanovllm.server.app import create_app

PROMPTS = [f"Once upon a time a {who} found a {what}" for who in ("fox", "hen", "bear", "cat") for what in ("bell", "kite")]
PARAMS = [SamplingParams(temperature=0 if i % 2 else 0.9, seed=None if i % 2 else i, max_tokens=6 + i, ignore_eos=True)
          for i in range(8)]
POISON = 13  # a seed


@pytest.fixture(scope="module", params=["step by step", "looking ahead", "from rows", "with drafts"])
def llm(request):
    drafts = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}} if request.param == "with drafts" else {}
    with LLM(device="cpu", kvcache_block_size=4, num_kvcache_blocks=400, max_num_seqs=16, max_num_batched_tokens=64,
             async_scheduling=request.param != "step by step", **drafts) as llm:
        if request.param == "from rows":
            runner = llm.engine.model_runner
            runner.graphs = runner.decode_graphs(llm.config, capture=False)
        yield llm


@pytest.fixture(scope="module")
def expected(llm):
    return [output.text for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


@pytest.fixture(autouse=True)
def nothing_stays_behind(llm):
    yield
    llm.engine.check_integrity()
    assert not llm.engine.has_unfinished
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks


class Poisoned:
    """A runner's launch that fails for batches with a request of seed POISON, once that has `after` output tokens."""

    def __init__(self, llm, monkeypatch, after=0, error=lambda: ValueError("cannot compute this")):
        self.launch, self.after, self.error, self.sizes = llm.engine.model_runner.launch, after, error, []
        monkeypatch.setattr(llm.engine.model_runner, "launch", self)

    def __call__(self, batch):
        self.sizes.append(len(batch.items))
        for item in batch.items:
            if item.seq.seed == POISON and item.seq.num_output_tokens >= self.after:
                raise self.error()
        return self.launch(batch)


def poisoned():
    return SamplingParams(temperature=0.9, seed=POISON, max_tokens=20, ignore_eos=True)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_only_the_offender_ends_and_the_others_get_the_text_they_would_have_got(llm, expected, monkeypatch, caplog, after):
    launches = Poisoned(llm, monkeypatch, after)
    for at in (0, 3, 8):
        launches.sizes.clear(), caplog.clear()
        prompts, params = list(PROMPTS), list(PARAMS)
        prompts.insert(at, "A bad one"), params.insert(at, poisoned())
        outputs = llm.generate(prompts, params, use_tqdm=False)
        bad = outputs.pop(at)
        assert [output.text for output in outputs] == expected
        assert all(output.finish_reason == "length" and output.error is None for output in outputs)
        assert bad.finish_reason == "error" and after <= len(bad.token_ids) <= after + 1
        assert "a step of the engine failed: ValueError('cannot compute this')" in bad.error
        assert caplog.text.count("Traceback") == 1 and "1 of 9 requests failed" in caplog.text
        assert len(launches.sizes) < 13 + 14 + 12  # the calm run's steps, and twice a bisection of nine


def test_several_offenders_in_one_step(llm, expected, monkeypatch):
    Poisoned(llm, monkeypatch)
    prompts = [prompt for pair in zip(PROMPTS, ["bad"] * 8) for prompt in pair]
    params = [p for pair in zip(PARAMS, [poisoned()] * 8) for p in pair]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.text for output in outputs[::2]] == expected
    assert {output.finish_reason for output in outputs[1::2]} == {"error"}


def test_when_all_fail_the_steps_own_exception_is_raised(llm, monkeypatch):
    Poisoned(llm, monkeypatch)
    for prompts in ("alone", ["one", "two"]):
        with pytest.raises(ValueError, match="cannot compute this") as caught:
            llm.generate(prompts, poisoned(), use_tqdm=False)
        assert any("which was rolled back" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="cannot compute this"):
        list(llm.stream("alone", poisoned()))


def test_a_stream_of_several_goes_on_with_the_others(llm, expected, monkeypatch):
    Poisoned(llm, monkeypatch, after=2)
    texts = dict.fromkeys(range(9), "")
    with pytest.raises(ValueError, match="cannot compute this"):
        for i, piece in llm.stream(["A bad one", *PROMPTS], [poisoned(), *PARAMS]):
            texts[i] += piece
    assert list(texts.values())[1:] == expected and texts[0]


def test_what_only_large_batches_meet_costs_nobody_anything(llm, expected, monkeypatch, caplog):
    launch = llm.engine.model_runner.launch

    def out_of_memory(batch):
        if len(batch.items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launch(batch)

    monkeypatch.setattr(llm.engine.model_runner, "launch", out_of_memory)
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert [output.text for output in outputs] == expected and "CUDA out of memory" in caplog.text


def test_on_a_device_that_is_gone_nothing_is_tried_again(llm, monkeypatch, caplog):
    calls = []

    def dead(batch):
        calls.append(batch)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(llm.engine.model_runner, "launch", dead)
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert len(calls) == 1 and caplog.text.count("Traceback") == 1


@pytest.mark.parametrize("place", ["launch", "collect"])
def test_a_server_whose_device_is_gone_is_unhealthy_and_says_why(llm, monkeypatch, place):
    """Every step fails from now on: whoever watches the server must take it away, however well it still answers."""
    runner = llm.engine.model_runner

    def dead(*args):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously")

    with TestClient(create_app(AsyncLLM(llm)), base_url="http://localhost") as client:
        assert client.get("/health").json() == {"status": "ok"}
        monkeypatch.setattr(runner, "failure", None)  # which is what it is, and is to be again
        monkeypatch.setattr(*((runner, "forward", dead) if place == "launch" else (Launched, "wait", dead)))
        said = client.post("/v1/completions", json={"model": "offline", "prompt": "A fox", "max_tokens": 2})
        assert said.status_code == 500
        for path in ("/health", "/ping"):
            reply = client.get(path)
            assert reply.status_code == 503 and reply.json()["status"] == "broken"
            assert reply.json()["reason"].endswith("CUDA error: device-side assert triggered")


def test_a_scheduler_that_fails_again_cannot_tell_anybody_apart(llm, monkeypatch):
    def broken():
        raise RuntimeError("the books are wrong")

    monkeypatch.setattr(llm.engine.scheduler, "schedule", broken)
    with pytest.raises(RuntimeError, match="the books are wrong"):
        llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    monkeypatch.undo()


def test_an_interrupt_is_no_fault_of_a_step(llm, expected, monkeypatch, caplog):
    launch, calls = llm.engine.model_runner.launch, []

    def interrupted(batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return launch(batch)

    monkeypatch.setattr(llm.engine.model_runner, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert not caplog.records and [o.text for o in llm.generate(PROMPTS, PARAMS, use_tqdm=False)] == expected


def test_tasks_of_others_are_not_touched(llm, expected, monkeypatch, caplog):
    Poisoned(llm, monkeypatch, after=3)

    async def main():
        async with AsyncLLM(llm) as shared:
            return await asyncio.gather(shared.generate("A bad one", poisoned()), *map(shared.generate, PROMPTS, PARAMS),
                                        shared.generate("Another", poisoned()), return_exceptions=True)

    bad, *good, other = asyncio.run(main())
    assert [output.text for output in good] == expected
    assert isinstance(bad, RequestFailed) and isinstance(other, RequestFailed) and bad is not other
    assert isinstance(bad.__cause__, ValueError)
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_a_sample_that_fails_ends_its_request(llm, monkeypatch):
    """Sample i has seed + i: the second one is the bad one."""
    Poisoned(llm, monkeypatch, after=2)
    params = SamplingParams(temperature=0.9, seed=POISON - 1, n=2, max_tokens=5, ignore_eos=True)
    with pytest.raises(ValueError, match="cannot compute"):
        llm.generate("Two samples", params, use_tqdm=False)

    async def main():
        async with AsyncLLM(llm) as shared:
            with pytest.raises(RequestFailed, match="cannot compute"):
                await shared.generate("Two samples", params)

    asyncio.run(main())


def test_the_server_answers_500_to_the_offender_alone(llm, monkeypatch):
    Poisoned(llm, monkeypatch, after=1)
    body = {"max_tokens": 6, "temperature": 0}
    with TestClient(create_app(AsyncLLM(llm)), raise_server_exceptions=False) as client:
        with ThreadPoolExecutor(5) as pool:
            bodies = [body | {"prompt": prompt} for prompt in PROMPTS[:4]]
            bodies.append(body | {"prompt": "A bad one", "temperature": 0.9, "seed": POISON})
            statuses = [answer.status_code for answer in pool.map(lambda b: client.post("/v1/completions", json=b), bodies)]
    assert statuses == [200] * 4 + [500]
