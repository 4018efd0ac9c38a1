"""A model split over two GPUs: the tokens of one, in float32, with graphs and without; and nothing left after a death."""

import os
import signal
from pathlib import Path

import pytest
import torch

from nanovllm import LLM, SamplingParams
from tests.worker_code import in_worker, until_failure

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
SHARED = Path("/dev/shm")


def leftovers():
    return {file.name for file in SHARED.iterdir()} if SHARED.is_dir() else set()


def split(**settings):
    return LLM(device="cuda", tensor_parallel_size=2, max_num_seqs=8, num_kvcache_blocks=64, **settings)


def endless(llm):
    """A stream of text that has begun and is far from its end."""
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=1500, ignore_eos=True))
    for _ in range(20):
        next(stream)
    return stream


def tokens(llm):
    prompts = [f"Tell me a story about a {who}. Once upon a time" for who in ("fox", "hen", "bear", "kite")] * 3
    params = [SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=5 + 3 * i, ignore_eos=True, n=1,
                             presence_penalty=0.5 * (i % 3 == 0), logprobs=2 if i % 4 == 0 else None) for i in range(12)]
    return [out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_two_gpus_draw_the_tokens_of_one(eager):
    settings = dict(device="cuda", dtype="float32", enforce_eager=eager, max_num_seqs=8, num_kvcache_blocks=64)
    with LLM(**settings) as one:
        expected = tokens(one)
    before = leftovers()
    with LLM(tensor_parallel_size=2, **settings) as two:
        assert two.engine.model_runner.sums_in_one_shot == torch.cuda.can_device_access_peer(0, 1)
        assert tokens(two) == expected
        assert tokens(two) == expected, "with what the first round left in the cache"
    assert leftovers() <= before


def test_a_killed_worker_on_a_gpu_is_an_error_in_time_and_leaves_nothing():
    before, free = leftovers(), torch.cuda.mem_get_info(1)[0]
    llm = split()
    processes = llm.engine.model_runner.workers._processes
    _, seconds = until_failure(endless(llm), processes[1].kill, match=r"rank 1 .*SIGKILL")
    assert seconds < 10
    llm.close()
    assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * 2
    assert leftovers() <= before
    assert torch.cuda.mem_get_info(1)[0] > free - (64 << 20)


def test_a_stopped_worker_on_a_gpu_is_an_error_in_time():
    llm = split(worker_timeout=4)
    pid = llm.engine.model_runner.workers.pids[0]
    _, seconds = until_failure(endless(llm), lambda: os.kill(pid, signal.SIGSTOP), match=r"rank 0 .*no sign of life for 4 s")
    assert seconds < 10
    llm.close()


DEVICE_BUSY = "torch.cuda._sleep(2 * 10**11)"  # cycles: minutes, in which the step's own kernels wait


@pytest.mark.parametrize("hang", ["while True: pass", DEVICE_BUSY], ids=["host", "device"])
def test_a_rank_that_hangs_in_a_launch_on_a_gpu_is_an_error_in_time(hang):
    llm = split(worker_timeout=4)
    processes = llm.engine.model_runner.workers._processes
    stuck = ("import torch\nfrom nanovllm.engine.model_runner import ModelRunner\nreal = ModelRunner.launch\n"
             f"def launch(self, batch):\n    {hang}\n    return real(self, batch)\nModelRunner.launch = launch")
    _, seconds = until_failure(endless(llm), lambda: in_worker(llm, 1, stuck), match=r"no rank has made progress for 4 s")
    assert seconds < 10
    llm.close()
    assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * 2
