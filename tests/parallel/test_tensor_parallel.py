"""A model split over two processes: the same tokens as in one, and no way in which a worker can end that hurts."""

import asyncio
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import nbformat
import psutil
import pytest
import torch
from nbclient import NotebookClient
from torch.utils._triton import has_triton_package

from nanovllm import LLM, AsyncLLM, CheckpointError, EngineError, RequestFailed, SamplingParams, StructuredOutputsParams
from nanovllm.parallel import parallel_runner
from nanovllm.parallel.channel import Channel, wait
from nanovllm.parallel.worker_group import WorkerGroup
from nanovllm.server.app import create_app
from tests import worker_code
from tests.checkpoints import random_checkpoint
from tests.worker_code import Exec, in_worker

pytestmark = pytest.mark.slow
PRESSURE = dict(device="cpu", kvcache_block_size=2, num_kvcache_blocks=36, max_num_batched_tokens=40, max_num_seqs=6)
ENDLESS = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


def workers(llm):
    return llm.engine.model_runner.workers


def gone(pids, within=3.0):
    until = time.monotonic() + within
    while time.monotonic() < until and any(map(psutil.pid_exists, pids)):
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


def until_failure(llm, strike, after=5):
    """Generate, call `strike` in the middle, and return (the error, seconds from the strike to it)."""
    stream = llm.stream("Once upon a time", ENDLESS) if llm.tokenizer else steps(llm)
    for _, _ in zip(range(after), stream):
        pass
    return worker_code.until_failure(stream, strike)


def steps(llm):
    seq = llm.engine.add_request([1, 2, 3], ENDLESS)
    while not seq.is_finished:
        llm.engine.step()
        yield


@pytest.fixture(scope="module")
def llm():
    """Two ranks of the offline model under pressure; nothing in this file may break it."""
    with LLM(tensor_parallel_size=2, async_scheduling=True, **PRESSURE) as llm:
        yield llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"), num_key_value_heads=1)


def requests():
    """Prompts that share beginnings, and one of each kind of option."""
    rng = random.Random(0)
    prompts = [f"Tell me a story about a {who}. Once upon a time there was" for who in ("fox", "hen", "bear", "fox")] * 4
    options = [dict(temperature=0), dict(), dict(top_k=7), dict(top_p=0.8), dict(min_p=0.1), dict(presence_penalty=1.0),
               dict(repetition_penalty=1.3, temperature=0), dict(logit_bias={5: 3.0}), dict(min_tokens=4), dict(n=2),
               dict(logprobs=3), dict(prompt_logprobs=2, logprobs=0), dict(stop=["the", "."]), dict(stop_token_ids=[7, 11]),
               dict(structured_outputs=StructuredOutputsParams(regex="[a-z ]{4,30}[.!]")),
               dict(structured_outputs=StructuredOutputsParams(choice=["fox", "hen"]), temperature=0)]
    params = [SamplingParams(**{"seed": rng.randrange(2**60), "max_tokens": rng.choice([1, 9, 20]), "temperature": 0.9} | o)
              for o in (options + options)[:len(prompts)]]
    return prompts, params


def results(llm):
    prompts, params = requests()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm.engine.check_integrity()
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
    return outputs


def test_two_ranks_draw_the_tokens_that_one_draws(llm):
    with LLM(**PRESSURE) as one:
        expected = results(one)
        assert one.engine.scheduler.num_preemptions > 0, "the test wants pressure"
    found = results(llm)
    for ours, theirs in zip(found, expected, strict=True):
        assert [(o.token_ids, o.text, o.finish_reason, o.stop_reason) for o in ours.outputs] == [
            (o.token_ids, o.text, o.finish_reason, o.stop_reason) for o in theirs.outputs]
        for a, b in zip((*ours.outputs, ours), (*theirs.outputs, theirs)):
            a, b = ((x.prompt_logprobs if x in (ours, theirs) else x.logprobs) for x in (a, b))
            for entry, other in zip(a or (), b or (), strict=True):
                assert (entry is None) == (other is None)
                for token in set(entry or ()) & set(other or ()):
                    assert entry[token].logprob == pytest.approx(other[token].logprob, abs=1e-3)
    assert any(out.prompt_logprobs for out in found) and any(o.logprobs for out in found for o in out.outputs)


def test_stream_abort_and_interrupt_leave_it_usable(llm, monkeypatch):
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    text = "".join(llm.stream("Once upon a time", greedy))
    assert text == llm.generate("Once upon a time", greedy, use_tqdm=False)[0].text
    with pytest.raises(ValueError, match=r"profile=True: must be False with tensor_parallel_size=2"), llm.trace(profile=True):
        pass
    with llm.trace() as trace:
        llm.generate("Once upon a time", greedy, use_tqdm=False)
    assert sum(record.num_decode_tokens for record in trace) == 11
    victim = llm.engine.add_request([5, 6, 7], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    for _ in range(4):
        llm.engine.step()
    llm.engine.abort(victim.seq_id)
    assert llm.generate("Once upon a time", greedy, use_tqdm=False)[0].text == text
    replies, calls = workers(llm).replies, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) % 4 == 0:
            signal.raise_signal(signal.SIGINT)  # with a step under way, whose answer nobody will want
        return replies(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(workers(llm), "replies", interrupted)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                llm.generate(["The fox", "A hen"], SamplingParams(max_tokens=50, ignore_eos=True), use_tqdm=False)
            assert not llm.engine.has_unfinished
    assert llm.generate("Once upon a time", greedy, use_tqdm=False)[0].text == text


def test_one_message_a_step_of_any_size_defect_24(llm, monkeypatch):
    sent, send = [], workers(llm).send
    monkeypatch.setattr(workers(llm), "send", lambda what, step, content=None: (
        sent.append((what, step, len(pickle.dumps(content)))), send(what, step, content))[1])
    begun = llm.engine.num_steps
    big = [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=[2559] * 100_000) for _ in range(6)]
    llm.generate([[1, 2, i] for i in range(6)], big, use_tqdm=False)
    num_steps, launched = llm.engine.num_steps - begun, [size for what, _, size in sent if what == "step"]
    assert num_steps <= len(launched) <= num_steps + 1 and len(sent) <= len(launched) + 1, "one broadcast a step"
    assert max(launched) > 1 << 20 and min(launched) < 1000, "nothing is sent twice"


def test_messages_larger_than_any_buffer_arrive_whole_and_in_order_defect_24():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    sent = [random.Random(i).randbytes(size) for i, size in enumerate((0, 1, 5 << 20, 3, 8 << 20))]
    for message in sent:
        ours.send(message)
    received = []
    while len(received) < len(sent):
        wait([ours, theirs], 1)
        ours.flush()
        received += theirs.receive()
    assert received == sent and ours.is_flushed
    ours.close()
    assert theirs.receive() == [] and not theirs.is_open
    theirs.send(b"into the void")  # says nothing: whoever waits for the answer finds out why there is none


def test_kv_heads_fewer_than_ranks_and_a_worker_killed_beside_another_engine(llm, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prompts = [[i, 2, 3, 4, 5, 6, 7] * 3 for i in range(5)]
    greedy = SamplingParams(temperature=0, max_tokens=12)
    with LLM(folder, device="cpu") as one:
        expected = [out.token_ids for out in one.generate(prompts, greedy, use_tqdm=False)]
    two = LLM(folder, device="cpu", kvcache_block_size=4, tensor_parallel_size=2)
    assert [out.token_ids for out in two.generate(prompts, greedy, use_tqdm=False)] == expected
    assert "2 ranks on cpu" in repr(two)

    pids, file = workers(two).pids, Path("/dev/shm") / f"nccl-test-{os.getpid()}"
    if file.parent.is_dir():  # as NCCL's, which only its own process could have unlinked
        in_worker(two, 0, f"import mmap\nf = open('{file}', 'w+b')\nf.truncate(4096)\nsys.kept = mmap.mmap(f.fileno(), 4096)")
    error, seconds = until_failure(two, lambda: os.kill(pids[1], signal.SIGKILL))
    assert seconds < 10 and "rank 1" in str(error) and "SIGKILL" in str(error) and "make a new LLM" in str(error)
    assert gone(pids) and not file.exists() and list(tmp_path.iterdir()) == []
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"ended when rank 1 .*make a new LLM"):
        two.generate([[1]], use_tqdm=False)
    assert not [seq for seq in two.engine.scheduler.running if seq.seq_id > 5]
    two.close()
    assert time.monotonic() - began < 3
    assert llm.generate("Once upon a time", SamplingParams(max_tokens=3), use_tqdm=False)


FROM_ROWS = """
import gc
from types import SimpleNamespace
runner, = (o for o in gc.get_objects() if type(o).__name__ == "ModelRunner")
limits = SimpleNamespace(max_num_seqs=3, max_model_len=32, max_num_batched_tokens=100, speculative_config=None)
runner.graphs = runner.decode_graphs(limits, capture=False)
launch = runner.graphs.launch
runner.graphs.launch = lambda *arguments: (print("a step from rows", flush=True), launch(*arguments))[1]
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the real thing: tests/gpu/test_tensor_parallel_gpu.py")
@pytest.mark.parametrize("family", ["Qwen3", "Qwen3Moe"])
def test_the_fused_model_on_rows_as_graphs_run_them_draws_the_same(folder, tmp_path, family):
    if family == "Qwen3Moe":
        folder = random_checkpoint(tmp_path, family=family)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11], [3, 3, 3]]
    params = [SamplingParams(temperature=t, seed=i, max_tokens=6, ignore_eos=True, logprobs=1 if i == 2 else None)
              for i, t in enumerate((0, 0.8, 0))]
    settings = dict(device="cpu", kvcache_block_size=4, num_kvcache_blocks=16, max_num_seqs=3, max_model_len=32)
    with LLM(folder, **settings) as one:
        expected = [out.token_ids for out in one.generate(prompts, params, use_tqdm=False)]
    with LLM(folder, attention_backend="triton", tensor_parallel_size=2, async_scheduling=True, **settings) as two:
        assert "attention=triton" in repr(two)
        for rank in (0, 1):
            in_worker(two, rank, FROM_ROWS)
        assert [out.token_ids for out in two.generate(prompts, params, use_tqdm=False)] == expected
        for log in workers(two)._logs:
            log.seek(0)
            assert log.read().count(b"a step from rows") >= 5


def test_a_stopped_worker_is_an_error_in_time(folder):
    llm = LLM(folder, device="cpu", tensor_parallel_size=2, worker_timeout=3)
    pids = workers(llm).pids
    error, seconds = until_failure(llm, lambda: os.kill(pids[1], signal.SIGSTOP))
    assert 2.5 < seconds < 10 and f"rank 1 (process {pids[1]}) has shown no sign of life for 3 s" in str(error)
    assert gone(pids)
    llm.close()


def test_a_worker_that_waits_for_ever_is_an_error_and_one_that_works_for_long_is_not(folder):
    llm = LLM(folder, device="cpu", tensor_parallel_size=2, worker_timeout=2)
    pids = workers(llm).pids
    slow = ("from nanovllm.engine.model_runner import ModelRunner as M\nimport time\nreal = M.launch\n"
            "def launch(self, batch):\n    M.launch = real\n    until = time.time() + 4\n"
            "    while time.time() < until: pass\n    return real(self, batch)\nM.launch = launch")
    in_worker(llm, 1, slow)
    began = time.monotonic()
    assert len(llm.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)[0].token_ids) == 3
    assert time.monotonic() - began > 4, "rank 1 worked, and rank 0 waited for it, for twice the limit"

    stuck = ("from nanovllm.engine.model_runner import ModelRunner as M\nimport time\n"
             "M.launch = lambda self, batch: time.sleep(1000)")
    error, seconds = until_failure(llm, lambda: in_worker(llm, 1, stuck))
    assert 1.5 < seconds < 10 and "no rank has made progress for 2 s" in str(error) and "raise worker_timeout" in str(error)
    assert gone(pids)
    llm.close()


AS_ON_A_GPU = """
import gc, inspect, time, torch, triton.compiler
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.kernels.kv_store import _store_kernel
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
worker, = (o for o in gc.get_objects() if type(o).__name__ == "Worker")
worker._expect_short_steps()

class Driver:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

def launch(self, batch):
    ModelRunner.launch = real
    driver.set_active(Driver)
    triton.compiler.compile = lambda *arguments, **options: time.sleep(5)
    kernel = JITFunction(_store_kernel.fn)
    names = inspect.signature(kernel.fn).parameters
    kernel.warmup(*(torch.float32 if name.endswith("_ptr") else 64 for name in names), grid=(1,))
    return real(self, batch)

real = ModelRunner.launch
if worker.rank == 1:
    ModelRunner.launch = launch
"""


@pytest.mark.skipif(not has_triton_package(), reason="Triton has no package for this platform")
@pytest.mark.parametrize("hang", ["while True: pass", "time.sleep(1000)"], ids=["spins", "sleeps"])
def test_on_a_gpu_a_launch_may_compile_for_long_and_do_nothing_else_for_long(folder, hang):
    """Triton's own dispatch, for a GPU that is not there and with a compiler that takes more than twice the limit."""
    llm = LLM(folder, device="cpu", tensor_parallel_size=2, worker_timeout=2)
    for rank in (0, 1):
        in_worker(llm, rank, AS_ON_A_GPU)
    began = time.monotonic()
    assert len(llm.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)[0].token_ids) == 3
    assert time.monotonic() - began > 5

    stuck = ("from nanovllm.engine.model_runner import ModelRunner\nimport time\n"
             f"def launch(self, batch):\n    {hang}\nModelRunner.launch = launch")
    error, seconds = until_failure(llm, lambda: in_worker(llm, 1, stuck))
    assert 1.5 < seconds < 10 and "no rank has made progress for 2 s" in str(error)
    llm.close()


def test_a_rank_that_hangs_while_it_starts_is_an_error_in_time(folder, monkeypatch):
    monkeypatch.setattr(parallel_runner, "START_TIMEOUT", 4.0)
    send = WorkerGroup.send

    def stuck(self, what, step, content=None):
        content["config"].note = Exec("import sys, time, json\nif json.loads(sys.argv[1])['rank'] == 1: time.sleep(100)")
        send(self, what, step, content)

    monkeypatch.setattr(WorkerGroup, "send", stuck)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"no rank has made progress for 4 s.* while it was starting"):
        LLM(folder, device="cpu", tensor_parallel_size=2, worker_timeout=2)
    assert time.monotonic() - began < 30


def test_tasks_and_a_server_on_two_ranks_and_what_they_hear_of_a_death(folder):
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

    async def scenario():
        async with AsyncLLM(folder, device="cpu", tensor_parallel_size=2) as llm:
            pids = workers(llm.llm).pids
            a, b = await asyncio.gather(llm.generate([1, 2], greedy), llm.generate([3, 4], greedy))
            assert len(a.token_ids) == len(b.token_ids) == 6
            task = asyncio.create_task(llm.generate([1, 2], ENDLESS))
            await asyncio.sleep(0.3)
            task.cancel()
            assert (await llm.generate([1, 2], greedy)).token_ids == a.token_ids
            app = create_app(llm)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http:
                assert (await http.get("/health")).json() == {"status": "ok"}
                os.kill(pids[0], signal.SIGKILL)
                assert gone(pids[:1]) or psutil.Process(pids[0]).status() == psutil.STATUS_ZOMBIE
                health = await http.get("/health")
                assert health.status_code == 503 and "rank 0" in health.json()["reason"]
            for _ in range(2):
                with pytest.raises(RequestFailed, match="make a new LLM"):
                    await llm.generate([1, 2], greedy)
        assert gone(pids)

    asyncio.run(scenario())


def test_an_exception_in_a_worker_arrives_with_its_traceback_and_del_ends_the_workers(folder):
    llm = LLM(folder, device="cpu", tensor_parallel_size=2)
    pids = workers(llm).pids
    broken = ("from nanovllm.layers.activation import SiluAndMul as S\n"
              "def forward(self, x):\n    raise OSError('the layer broke')\nS.forward = forward")
    error, seconds = until_failure(llm, lambda: in_worker(llm, 1, broken))
    assert seconds < 10 and "rank 1 raised OSError: the layer broke, in step 6" in str(error)
    assert any("in the worker" in note and "down_proj" in note for note in error.__notes__)
    assert gone(pids)


def test_close_and_del_end_workers_in_any_state(folder):
    llm = LLM(folder, device="cpu", tensor_parallel_size=2)
    pids = workers(llm).pids
    del llm  # nobody called close
    assert gone(pids)
    llm = LLM(folder, device="cpu", tensor_parallel_size=2)
    pids = workers(llm).pids
    os.kill(pids[0], signal.SIGSTOP)
    began = time.monotonic()
    llm.close()
    llm.close()
    assert time.monotonic() - began < 8 and gone(pids)
    with pytest.raises(EngineError, match="it was closed"):
        llm.generate([[1]])


def test_what_cannot_be_divided_is_refused_with_the_reason_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    with pytest.raises(ValueError, match=r"vocab_size=2560: must be divisible by tensor_parallel_size=3"):
        LLM(device="cpu", tensor_parallel_size=3)
    odd = random_checkpoint(tmp_path / "heads", num_attention_heads=5, num_key_value_heads=5)
    with pytest.raises(ValueError, match=r"num_attention_heads=5: must be divisible by tensor_parallel_size=2"):
        LLM(odd, device="cpu", tensor_parallel_size=2)
    odd = random_checkpoint(tmp_path / "vocabulary", vocab_size=97)
    with pytest.raises(ValueError, match=r"vocab_size=97: must be divisible by tensor_parallel_size=2"):
        LLM(odd, device="cpu", tensor_parallel_size=2)
    with pytest.raises(ValueError, match=r"sampler=.*must be None with tensor_parallel_size > 1"):
        LLM(device="cpu", tensor_parallel_size=2, sampler=lambda logits, batch: logits.argmax(-1))
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="tensor_parallel_size="):
            LLM(device="cpu", tensor_parallel_size=bad)


def test_a_setting_that_only_a_worker_can_judge_comes_back_as_it_is(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="not a complete safetensors file") as caught:
        LLM(tmp_path, device="cpu", tensor_parallel_size=2)
    assert any("load_weights" in note for note in caught.value.__notes__)


# No guard: importing this again in a worker would start engines for ever.
SCRIPT = """
import os, sys
from nanovllm import LLM, SamplingParams
llm = LLM(sys.argv[1], device="cpu", tensor_parallel_size=2)
llm.engine.add_request([1, 2, 3], SamplingParams(max_tokens=400, ignore_eos=True))
for _ in range(3):
    llm.engine.step()
print(*llm.engine.model_runner.workers.pids, flush=True)
while llm.engine.has_unfinished:
    llm.engine.step()
sys.stdin.read()
"""


def test_a_script_needs_no_guard_and_a_killed_caller_leaves_no_orphans(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    caller = subprocess.Popen([sys.executable, script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    with caller:
        pids = [int(pid) for pid in caller.stdout.readline().split()]
        assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
        caller.kill()
    assert gone(pids, 5)


@pytest.mark.unmeasured
def test_from_a_notebook_cell(folder):
    cells = [f"from nanovllm import LLM, SamplingParams\nllm = LLM({str(folder)!r}, device='cpu', tensor_parallel_size=2)",
             "out, = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)\n"
             "print(len(out.token_ids), *llm.engine.model_runner.workers.pids)",
             "llm.close()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120).execute()
    count, *pids = map(int, notebook.cells[1].outputs[0].text.split())
    assert count == 5 and gone(pids)
