"""Things that break while the engine serves: it says what failed, frees what it held, and serves the next request."""

import gc
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

import nanovllm
from nanovllm import LLM, SamplingParams
from nanovllm.engine import model_loader
from nanovllm.tracing.recorder import Recorder
from nanovllm.tracing.trace import Trace

from .checkpoints import random_checkpoint

PACKAGE = Path(nanovllm.__file__).parent
PROMPTS = ["Tell me a story about a fox.", "Tell me a story about a hen and a kite.", "Once upon a time"]
PARAMS = [SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, stop=["zzz"]),
          SamplingParams(temperature=0.8, seed=1, max_tokens=7, ignore_eos=True, presence_penalty=0.5),
          SamplingParams(temperature=0.9, seed=2, max_tokens=5, ignore_eos=True, n=2)]


@pytest.fixture(scope="module", params=[False, True], ids=["step by step", "looking ahead"])
def llm(request):
    # A cache so small that sequences are thrown out and recomputed: faults must strike there, too.
    with LLM(device="cpu", kvcache_block_size=2, num_kvcache_blocks=24, max_num_batched_tokens=16,
             async_scheduling=request.param) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm):
    return texts(llm)


def texts(llm):
    return [[o.text for o in out.outputs] for out in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


def assert_as_good_as_new(llm, expected):
    assert not llm.engine.has_unfinished
    llm.engine.check_integrity()
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
    assert texts(llm) == expected


class Faulty:
    """A callable that breaks when it is called for the n-th time."""

    def __init__(self, original, n, error):
        self.original, self.left, self.error = original, n, error

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.original(*args, **kwargs)


FAULTS = {
    "the model": lambda llm: (llm.engine.model_runner, "forward"),
    "the layers": lambda llm: (llm.engine.model_runner.model.model.layers[1].mlp, "forward"),
    "the sampler": lambda llm: (llm.engine.model_runner.sampler, "forward"),
    "waiting for the device": lambda llm: (llm.engine.model_runner, "collect"),
    "preparing a step": lambda llm: (llm.engine.model_runner, "prepare"),
    "the scheduler": lambda llm: (llm.engine.scheduler, "schedule"),
    "a stop-string check": lambda llm: (sys.modules["nanovllm.serving.stop_strings"].StopStrings, "push"),
    "the tokenizer": lambda llm: (llm.tokenizer, "decode"),
}


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("place", FAULTS)
def test_an_exception_ends_the_call_at_most(llm, expected, monkeypatch, place, n, caplog):
    """One that does not come again when the step is taken again ends nothing."""
    other = llm.engine.add_request([5, 6, 7], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    owner, name = FAULTS[place](llm)
    fault = RuntimeError(f"{place} broke")
    original = getattr(owner, name)
    faulty = Faulty(original, n, fault)
    with monkeypatch.context() as patch:
        # A method looked up on its class must get its object; on an object it is bound already.
        patch.setattr(owner, name, (lambda *a, **k: faulty(*a, **k)) if isinstance(owner, type) else faulty)
        if place in ("a stop-string check", "the tokenizer"):
            with pytest.raises(RuntimeError, match=f"{place} broke") as caught:
                texts(llm)
            assert caught.value is fault and not caplog.records
        else:
            assert texts(llm) == expected
            assert "which was rolled back" in caplog.text and caplog.text.count("Traceback") == 1
    assert faulty.left <= 0
    assert not other.is_finished, "a request of somebody else must not suffer"
    while not other.is_finished:
        llm.engine.step()
    alone, = llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), use_tqdm=False)
    assert other.output_token_ids == alone.token_ids
    assert_as_good_as_new(llm, expected)


@pytest.mark.parametrize("n", [1, 4])
def test_an_observer_that_breaks(llm, expected, n):
    class Breaking(Trace):
        def append(self, record):
            if len(self.records) == n - 1:
                raise OSError("no space left for the trace")
            super().append(record)

        def ended(self, seq):
            raise OSError("no space left for the end either")

    trace = Breaking()
    recorder = Recorder(llm.engine, trace)
    with pytest.raises(OSError, match="no space left"):
        texts(llm)
    assert len(trace.records) == n - 1 and not llm.engine.has_unfinished
    recorder.close()
    assert_as_good_as_new(llm, expected)


def interrupt_at(line_number: int, files=("/engine/", "llm.py", "/serving/")) -> list[str]:
    """Have SIGINT arrive when the package comes to its `line_number`-th line from now on; returns where that was."""
    count, where = 0, []

    def on_line(frame, event, _):
        nonlocal count
        if event == "line":
            count += 1
            if count == line_number:
                where.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                signal.raise_signal(signal.SIGINT)
        return on_line

    def on_call(frame, event, _):
        file = frame.f_code.co_filename
        ours = file.startswith(str(PACKAGE)) and any(part in file for part in files)
        return on_line if ours and not where else None

    sys.settrace(on_call)
    return where


def test_an_interrupt_at_any_line(llm, expected):
    previous = sys.gettrace()
    try:
        total = 0

        def count(frame, event, _):
            nonlocal total
            total += event == "line"
            return count

        sys.settrace(lambda frame, event, arg: count if "nanovllm/engine/" in frame.f_code.co_filename else None)
        texts(llm)
        sys.settrace(previous)
        rng, places, finished = random.Random(0), set(), 0
        for _ in range(60):
            try:
                where = interrupt_at(rng.randrange(total))
                assert texts(llm) == expected
                finished += 1
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(previous)
            places.update(where)
            assert not llm.engine.has_unfinished, where
            llm.engine.check_integrity()
            assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks, where
    finally:
        sys.settrace(previous)
    assert len(places) > 25 and finished < 10, "the interrupts did not strike at many places"
    assert_as_good_as_new(llm, expected)


@pytest.fixture
def from_rows():
    """An engine whose decode steps run from padded rows, as in CUDA graphs."""
    with LLM(device="cpu", kvcache_block_size=2, num_kvcache_blocks=60, max_num_batched_tokens=64, max_num_seqs=8,
             async_scheduling=True) as llm:
        runner = llm.engine.model_runner
        runner.graphs = runner.decode_graphs(llm.config, capture=False)
        yield llm


def test_an_interrupt_at_any_line_that_seats_sequences_in_rows(from_rows):
    previous, expected, rng, places = sys.gettrace(), texts(from_rows), random.Random(0), set()
    try:
        for _ in range(70):
            try:
                where = interrupt_at(rng.randrange(1, 390), files=["decode_rows.py"])
                texts(from_rows)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(previous)
            places.update(where)
            assert texts(from_rows) == expected, where
    finally:
        sys.settrace(previous)
    assert len(places) > 15


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("place", ["launch", "_step", "assign"])
def test_a_fault_while_rows_run(from_rows, monkeypatch, place, n):
    expected, graphs = texts(from_rows), from_rows.engine.model_runner.graphs
    owner = graphs.rows if place == "assign" else graphs
    original, calls = getattr(owner, place), []

    def failing(*arguments):
        result = original(*arguments)  # the damage is done, and nobody learns of it
        calls.append(place)
        if len(calls) == n:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, failing)
        assert texts(from_rows) == expected
    assert_as_good_as_new(from_rows, expected)


INTERRUPTED = """
import signal, sys, time
from nanovllm import LLM, SamplingParams
llm = LLM(device="cpu", kvcache_block_size=2, num_kvcache_blocks=64, max_num_batched_tokens=32,
          async_scheduling=True)
params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop="zzz")
long = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True, stop="zzz")
expected = llm.generate("Once upon a time", params, use_tqdm=False)[0].text
interrupts = 0
while interrupts < 12:
    try:
        print("ready", flush=True)
        while True:
            llm.generate(["Once upon a time", "The fox", "A hen and a kite"], long, use_tqdm=False)
    except KeyboardInterrupt:
        interrupts += 1
    assert not llm.engine.has_unfinished
    llm.engine.check_integrity()
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
    assert llm.generate("Once upon a time", params, use_tqdm=False)[0].text == expected
print("survived", flush=True)
"""


def test_interrupts_that_come_when_they_please():
    """Real signals from another process, at random times after the child says that it is generating."""

    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             encoding="utf-8")
    rng = random.Random(1)
    try:
        for line in child.stdout:
            if line.strip() == "survived":
                break
            time.sleep(rng.uniform(0, 0.15))
            child.send_signal(signal.SIGINT)
        assert child.wait(60) == 0, child.stderr.read()
        assert line.strip() == "survived"
    finally:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def weights(monkeypatch):
    """Weak references to the models that are made, to see whether they go."""
    made, load = [], model_loader.load_weights

    def remember(model, path):
        made.append(weakref.ref(model))
        return load(model, path)

    monkeypatch.setattr(model_loader, "load_weights", remember)
    return made


def assert_serves(folder):
    with LLM(folder, device="cpu") as llm:
        assert len(llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)[0].token_ids) == 4


def test_no_memory_for_the_cache(folder, weights, monkeypatch):
    with pytest.raises(RuntimeError, match=r"the KV cache of 99999999999 blocks \(.* GiB\) does not fit on cpu; lower") as huge:
        LLM(folder, device="cpu", num_kvcache_blocks=99_999_999_999)
    zeros = torch.zeros

    def out_of_memory(*shape, **kwargs):
        if len(shape) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*shape, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", out_of_memory)
        with pytest.raises(RuntimeError, match="the KV cache of 7 blocks") as full:
            LLM(folder, device="cpu", num_kvcache_blocks=7)
    gc.collect()
    assert huge.value and full.value and [model() for model in weights] == [None, None], "an error must not hold weights"
    assert_serves(folder)


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    file.write_bytes({"cut in half": data[:len(data) // 2], "cut by one byte": data[:-1], "empty": b"",
                      "header overwritten": b"\xff" * 64 + data[64:], "not safetensors at all": b"<html>404</html>"}[how])


@pytest.mark.parametrize("how", ["cut in half", "cut by one byte", "empty", "header overwritten", "not safetensors at all"])
def test_a_damaged_safetensors_file(folder, weights, tmp_path, how):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy / "model.safetensors", how)
    message = r"model\.safetensors: not a complete safetensors file .*; copy or download it again"
    with pytest.raises(ValueError, match=message) as caught:
        LLM(copy, device="cpu")
    gc.collect()
    assert caught.value and [model() for model in weights] == [None]
    assert_serves(folder)


def test_a_folder_without_a_tokenizer_serves_token_ids_and_says_what_it_cannot(folder):
    greedy = SamplingParams(temperature=0, max_tokens=4)
    with LLM(folder, device="cpu") as llm:
        for call in (lambda: llm.generate("hello"), lambda: llm.chat([{"role": "user", "content": "hello"}]),
                     lambda: llm.stream("hello"), lambda: llm.stream([[1, 2]])):
            with pytest.raises(ValueError, match=r"a folder with a tokenizer\.json.*pass lists of token ids"):
                call()
        with pytest.raises(ValueError, match="use stop_token_ids"):
            llm.generate([[1, 2]], SamplingParams(stop="x"))
        out, = llm.generate([[1, 2, 3]], greedy, use_tqdm=False)
        assert out.text == "" and len(out.token_ids) == 4 and not llm.engine.has_unfinished
