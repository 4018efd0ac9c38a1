"""One LLM, several threads, and an LLM beside its AsyncLLM: each call gets what it would get alone, or a clear error."""

import asyncio
import gc
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tqdm.auto import tqdm

from nanovllm import LLM, AsyncLLM, SamplingParams
from nanovllm.errors import EngineError, RequestFailed

WHO, WHAT = ("fox", "hen", "bear", "cat", "dog"), ("bell", "kite", "hat", "egg")
LONG = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)


def work(thread):
    """Twenty prompts for a thread, and what it asks of each."""
    prompts = [f"Story {thread}: once upon a time a {who} found a {what}" for who in WHO for what in WHAT]
    params = [SamplingParams(temperature=0 if i % 3 else 0.9, seed=None if i % 3 else 100 * thread + i, ignore_eos=True,
                             max_tokens=3 + (i + thread) % 7, stop=["."] if i % 5 == 0 else [], n=2 if i % 6 == 3 else 1,
                             logprobs=1 if i % 4 == 0 else None) for i in range(20)]
    return prompts, params


def content(outputs):
    return [[(sample.text, sample.token_ids, sample.finish_reason, sample.stop_reason) for sample in output.outputs]
            for output in outputs]


@pytest.fixture(scope="module", params=[False, True], ids=["step by step", "looking ahead"])
def llm(request):
    with LLM(device="cpu", kvcache_block_size=4, num_kvcache_blocks=600, max_num_seqs=48, max_num_batched_tokens=256,
             async_scheduling=request.param) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_stays_behind(llm):
    yield
    llm.engine.check_integrity()
    assert not llm.engine.has_unfinished
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks


@pytest.fixture(scope="module")
def alone(llm):
    return [content(llm.generate(*work(thread), use_tqdm=False)) for thread in range(8)]


def test_eight_threads_of_twenty_prompts_get_what_each_gets_alone(llm, alone):
    steps = llm.engine.num_steps
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda thread: content(llm.generate(*work(thread), use_tqdm=False)), range(8)))
    assert together == alone
    assert llm.engine.num_steps - steps < 80  # the threads did run together: one after the other they take some 88


def test_streams_chats_and_traces_mixed(llm, alone):
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    greedy = SamplingParams(temperature=0, max_tokens=20)
    chat = llm.chat(messages, greedy, use_tqdm=False)[0].text
    story = llm.generate("Once upon a time", greedy, use_tqdm=False)[0].text

    def stream():
        return ["".join(llm.stream("Once upon a time", greedy)) for _ in range(3)]

    def chats():
        return [llm.chat(messages, greedy, use_tqdm=False)[0].text for _ in range(3)]

    def generate():
        return content(llm.generate(*work(2), use_tqdm=False))

    def traced():
        with llm.trace() as trace:
            found = content(llm.generate(*work(5), use_tqdm=False))
        assert len(trace) > 9
        return found

    calls = [stream, chats, generate, traced] * 2
    with ThreadPoolExecutor(len(calls)) as pool:
        found = list(pool.map(lambda call: call(), calls))
    assert found == [[story] * 3, [chat] * 3, alone[2], alone[5]] * 2


def test_a_stream_left_open_keeps_nobody_waiting(llm, alone):
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    whole = llm.generate("Once upon a time", params, use_tqdm=False)[0].text
    held = llm.stream("Once upon a time", params)
    first = next(held)
    assert content(llm.generate(*work(0), use_tqdm=False)) == alone[0]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: content(llm.generate(*work(1), use_tqdm=False))).result(120) == alone[1]
        assert first + pool.submit(lambda: "".join(held)).result(120) == whole  # begun here, ended there
    dropped = llm.stream("Once upon a time", params)
    next(dropped)
    del dropped  # aborts it


def test_who_asks_for_little_is_not_kept_by_who_asks_for_much(llm):
    """Nor does a stream come in lumps."""
    begun, ended = threading.Event(), []

    def much():
        begun.set()
        llm.generate(["A long story:"] * 4, LONG, use_tqdm=False)
        ended.append("much")

    thread = threading.Thread(target=much)
    thread.start()
    begun.wait()
    before = llm.engine.num_steps
    pieces = list(llm.stream("Once upon a time", SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)))
    assert not ended and llm.engine.num_steps - before < 60 and len(pieces) > 20
    llm.generate("The end", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True), use_tqdm=False)
    assert not ended and llm.engine.num_steps - before < 80
    thread.join()


def test_an_error_in_one_thread_is_that_threads_alone(llm, alone, monkeypatch):
    launch = llm.engine.model_runner.launch

    def failing(batch):
        if any(item.seq.seed == 13 for item in batch.items):
            raise ValueError("cannot compute this")
        return launch(batch)

    monkeypatch.setattr(llm.engine.model_runner, "launch", failing)

    def bad():
        for _ in range(3):
            with pytest.raises(ValueError, match="cannot compute this"):
                llm.generate("A bad one", SamplingParams(seed=13), use_tqdm=False)
            with pytest.raises(ValueError, match="at least one character"):
                llm.generate("", use_tqdm=False)

    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(lambda i=i: content(llm.generate(*work(i), use_tqdm=False))) for i in range(3)]
        pool.submit(bad).result()
        assert [future.result() for future in good] == alone[:3]


def test_interrupts_of_the_main_thread_leave_the_others_alone(llm, alone):
    """Real signals, whenever they come: in a step of its own, or while it waits for another thread's."""
    rng, main, done = random.Random(0), threading.get_ident(), threading.Event()
    armed = threading.Event()

    def others(i):
        return [content(llm.generate(*work(i), use_tqdm=False)) for _ in range(3)]

    def strike():
        while not done.is_set():
            if armed.wait(0.05):
                time.sleep(rng.uniform(0, 0.1))
                if armed.is_set():
                    armed.clear()
                    signal.pthread_kill(main, signal.SIGINT)

    striker = threading.Thread(target=strike)
    striker.start()
    interrupts = 0
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(others, i) for i in range(3)]
        try:
            while interrupts < 12:
                try:
                    armed.set()
                    while True:
                        llm.generate(*work(7), use_tqdm=False)
                except KeyboardInterrupt:
                    interrupts += 1
        finally:
            done.set()
            striker.join()
        assert [future.result(120) for future in futures] == [[expected] * 3 for expected in alone[:3]]
    assert content(llm.generate(*work(7), use_tqdm=False)) == alone[7]


def test_an_interrupt_in_a_progress_bar_leaves_its_lock_to_the_others(llm, alone, monkeypatch):
    """tqdm's is one for the whole process, and is taken without a bar on the screen, too."""
    lock, main = tqdm.get_lock(), threading.main_thread()

    class Striking:
        def __enter__(self):
            lock.acquire()
            if threading.current_thread() is main:
                signal.raise_signal(signal.SIGINT)

        def __exit__(self, *exc_info):
            lock.release()

        acquire, release = lock.acquire, lock.release

    monkeypatch.setattr(tqdm, "_lock", Striking())
    with pytest.raises(KeyboardInterrupt):
        llm.generate(*work(0), use_tqdm=False)
    assert not llm.engine.has_unfinished
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: content(llm.generate(*work(1), use_tqdm=False))).result(120) == alone[1]


def test_an_llm_beside_its_async_llm(llm, alone):
    async def main():
        async with AsyncLLM(llm) as shared:
            tasks = [asyncio.create_task(shared.generate(prompt, params)) for prompt, params in zip(*work(3))]
            in_threads = await asyncio.gather(*(asyncio.to_thread(llm.generate, *work(i), use_tqdm=False) for i in (0, 4)))
            assert content(in_threads[0]) == alone[0] and content(in_threads[1]) == alone[4]
            assert content(await asyncio.gather(*tasks)) == alone[3]
            assert content(llm.generate(*work(1), use_tqdm=False)) == alone[1]  # in the event loop's own thread, too
            held = llm.stream("Once upon a time", LONG)
            next(held)
            again = await asyncio.gather(*(shared.generate(prompt, params) for prompt, params in zip(*work(6))))
            assert content(again) == alone[6]
            held.close()
        assert content(llm.generate(*work(2), use_tqdm=False)) == alone[2]

    asyncio.run(main())


def test_two_async_llms_of_one_llm(llm, alone):
    async def main():
        async with AsyncLLM(llm) as one, AsyncLLM(llm) as other:
            both = await asyncio.gather(*(asyncio.gather(*map(shared.generate, *work(i)))
                                          for shared, i in ((one, 2), (other, 5))))
        assert [content(outputs) for outputs in both] == [alone[2], alone[5]]

    asyncio.run(main())


def test_a_stream_that_is_collected_in_the_middle_of_a_step(llm, alone, monkeypatch):
    """The garbage collector runs where it likes, in this thread, too, while the scheduler goes through its lists."""
    schedule, streams = llm.engine.scheduler.schedule, [llm.stream("Once upon a time", LONG) for _ in range(3)]
    for stream in streams:
        next(stream)

    def collecting():
        batch = schedule()
        if streams:
            streams.pop().close()
            gc.collect()
        return batch

    monkeypatch.setattr(llm.engine.scheduler, "schedule", collecting)
    assert content(llm.generate(*work(0), use_tqdm=False)) == alone[0]
    assert not streams


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_closing_while_others_run_ends_them_with_a_clear_error(looks_ahead):
    llm = LLM(device="cpu", num_kvcache_blocks=600, async_scheduling=looks_ahead)
    running = threading.Barrier(4)

    def generate():
        running.wait()
        llm.generate(["Once upon a time"] * 2, SamplingParams(max_tokens=1500, ignore_eos=True), use_tqdm=False)

    def stream():
        for i, _ in enumerate(llm.stream("Once upon a time", SamplingParams(max_tokens=1500, ignore_eos=True))):
            if i == 0:
                running.wait()

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(generate), pool.submit(generate), pool.submit(stream)]
        running.wait()
        time.sleep(0.2)
        llm.close()
        for future in futures:
            with pytest.raises(RequestFailed, match="the engine was closed"):
                future.result(60)
    assert not llm.engine.has_unfinished and repr(llm) == "LLM(offline, closed)"
    with pytest.raises(EngineError, match="closed; make a new one"):
        llm.generate("Once")


def test_closing_an_llm_under_its_async_llm():
    llm = LLM(device="cpu", num_kvcache_blocks=600)

    async def main():
        async with AsyncLLM(llm) as shared:
            task = asyncio.create_task(shared.generate("Once upon a time", SamplingParams(max_tokens=1500, ignore_eos=True)))
            while not llm.engine.scheduler.running:
                await asyncio.sleep(0.01)
            llm.close()
            with pytest.raises(RequestFailed, match="the engine was closed"):
                await task
            with pytest.raises(RequestFailed, match="closed; make a new one"):
                await shared.generate("Once")

    asyncio.run(main())
