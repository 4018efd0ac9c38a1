"""Many asyncio tasks, one engine: texts, cancellation, errors, back-pressure, and a clean end. On the offline model."""

import asyncio
import gc
import threading
import weakref

import nbclient
import nbformat
import psutil
import pytest

from nanovllm import LLM, AsyncLLM, SamplingParams
from nanovllm.async_llm import QueueFull, RequestFailed

PROMPTS = [f"Once upon a time a {who} found a {what}" for who in ("fox", "hen", "bear", "cat") for what in ("bell", "kite")]
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", kvcache_block_size=4, num_kvcache_blocks=2000, max_num_seqs=64) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_stays_behind(llm):
    threads = set(threading.enumerate())
    yield
    llm.engine.check_integrity()
    assert not llm.engine.has_unfinished
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "nanovllm-engine"]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


class Gate:
    """Holds the engine before its next step until it is opened."""

    def __init__(self, llm, monkeypatch):
        self.reached, self._open, step = threading.Event(), threading.Event(), llm.engine.step

        def gated():
            self.reached.set()
            assert self._open.wait(30)
            return step()

        monkeypatch.setattr(llm.engine, "step", gated)
        self.open = self._open.set


def test_tasks_share_the_engine_and_each_gets_what_it_would_get_alone(llm):
    params = [GREEDY if i % 2 else SamplingParams(temperature=0.9, seed=i, max_tokens=16, ignore_eos=True) for i in range(8)]
    alone = [llm.generate(prompt, p, use_tqdm=False)[0] for prompt, p in zip(PROMPTS, params)]
    steps_before = llm.engine.num_steps

    async def main():
        async with AsyncLLM(llm) as shared:
            return await asyncio.gather(*map(shared.generate, PROMPTS, params))

    together = asyncio.run(main())
    assert [o.text for o in together] == [o.text for o in alone]
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    assert {o.finish_reason for o in together} == {"length"}
    assert llm.engine.num_steps - steps_before < 8 * 16 / 2  # they did run together


def test_a_stream_adds_up_to_what_generate_gives_and_arrives_in_pieces(llm):
    expected = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0]

    async def main():
        async with AsyncLLM(llm) as shared:
            return [delta async for delta in shared.stream(PROMPTS[0], GREEDY)]

    deltas = asyncio.run(main())
    assert "".join(delta.text for delta in deltas) == expected.text
    assert [token for delta in deltas for token in delta.token_ids] == expected.token_ids
    assert len(deltas) > 8
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


def test_samples_of_one_request_stream_side_by_side(llm):
    params = SamplingParams(temperature=0.8, seed=3, n=3, max_tokens=8, ignore_eos=True)
    expected = llm.generate(PROMPTS[1], params, use_tqdm=False)[0]

    async def main():
        texts = [""] * 3
        async with AsyncLLM(llm) as shared:
            async for delta in shared.stream(PROMPTS[1], params):
                texts[delta.index] += delta.text
        return texts

    assert asyncio.run(main()) == [sample.text for sample in expected.outputs]


def test_chat_and_stop_strings(llm):
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    whole = llm.chat(messages, SamplingParams(temperature=0, max_tokens=30), use_tqdm=False)[0].text
    word = whole.split()[5]

    async def main():
        async with AsyncLLM(llm) as shared:
            return await shared.chat(messages, SamplingParams(temperature=0, max_tokens=30, stop=word))

    output = asyncio.run(main())
    assert output.finish_reason == "stop" and output.stop_reason == word
    assert output.text == whole[:whole.index(word)]


def test_cancelling_a_task_aborts_its_request_and_no_other(llm):
    expected = llm.generate(PROMPTS[1], GREEDY, use_tqdm=False)[0].text
    ended = []

    async def main():
        async with AsyncLLM(llm, on_output=ended.append) as shared:
            doomed = asyncio.create_task(shared.generate(PROMPTS[0], ENDLESS))
            await until(lambda: llm.engine.scheduler.running)
            other = asyncio.create_task(shared.generate(PROMPTS[1], GREEDY))
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            assert (await other).text == expected
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(shared.generate(PROMPTS[0], ENDLESS), 0.05)
            await until(lambda: not llm.engine.has_unfinished)
            await until(lambda: len(ended) == 3)

    asyncio.run(main())
    assert sorted(output.finish_reason for output in ended) == ["abort", "abort", "length"]


def test_breaking_out_of_a_stream_aborts_its_request(llm):
    async def main():
        async with AsyncLLM(llm) as shared:
            async for delta in shared.stream(PROMPTS[0], ENDLESS):
                if delta.text:
                    break
            await until(lambda: not llm.engine.has_unfinished)
            assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks

    asyncio.run(main())


def test_a_failing_step_reaches_its_callers_and_the_next_request_is_served(llm, monkeypatch):
    expected = llm.generate(PROMPTS[2], GREEDY, use_tqdm=False)[0].text
    launch, calls = llm.engine.model_runner.launch, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) >= 4:
            raise RuntimeError("the model broke")
        return launch(*arguments)

    async def main():
        async with AsyncLLM(llm) as shared:
            monkeypatch.setattr(llm.engine.model_runner, "launch", failing)
            results = await asyncio.gather(*(shared.generate(p, ENDLESS) for p in PROMPTS[:3]), return_exceptions=True)
            monkeypatch.setattr(llm.engine.model_runner, "launch", launch)
            return results, await shared.generate(PROMPTS[2], GREEDY)

    results, after = asyncio.run(main())
    assert all(isinstance(error, RequestFailed) for error in results)
    assert len({id(error) for error in results}) == 3
    assert all("the model broke" in str(error.__cause__) for error in results)
    assert after.text == expected


def test_a_failing_step_spares_those_who_still_wait(llm, monkeypatch):
    expected = llm.generate(PROMPTS[1], GREEDY, use_tqdm=False)[0].text
    monkeypatch.setattr(llm.engine.scheduler, "max_num_seqs", 1)

    async def main():
        async with AsyncLLM(llm) as shared:
            running = asyncio.create_task(shared.generate(PROMPTS[0], ENDLESS))
            await until(lambda: llm.engine.scheduler.running)
            waiting = asyncio.create_task(shared.generate(PROMPTS[1], GREEDY))
            await until(lambda: llm.engine.scheduler.waiting)
            step = llm.engine.step

            def broken():
                monkeypatch.setattr(llm.engine, "step", step)
                raise RuntimeError("once")

            monkeypatch.setattr(llm.engine, "step", broken)
            with pytest.raises(RequestFailed, match="once"):
                await running
            return await waiting

    assert asyncio.run(main()).text == expected


def test_a_request_whose_text_cannot_be_made_fails_alone(llm, monkeypatch):
    expected = llm.generate(PROMPTS[1], GREEDY, use_tqdm=False)[0].text

    async def main():
        async with AsyncLLM(llm) as shared:
            broken = await shared.submit(PROMPTS[0], ENDLESS)
            monkeypatch.setattr(broken.request, "advance", lambda: 1 / 0)
            good = asyncio.create_task(shared.generate(PROMPTS[1], GREEDY))
            with pytest.raises(RequestFailed, match="division by zero"):
                await broken.output()
            return await good

    assert asyncio.run(main()).text == expected


def test_a_bad_request_is_refused_and_queues_nothing(llm):
    async def main():
        async with AsyncLLM(llm) as shared:
            for bad in ("", [], [10**6], ["a", "b"]):
                with pytest.raises(ValueError):
                    await shared.generate(bad, GREEDY)
            assert shared.num_queued == 0

    asyncio.run(main())
    with pytest.raises(ValueError, match="max_queued=0"):
        AsyncLLM(llm, max_queued=0)
    with pytest.raises(ValueError, match="empty for an LLM that is already there"):
        AsyncLLM(llm, max_num_seqs=4)


def test_the_queue_has_a_limit(llm, monkeypatch):
    gate = Gate(llm, monkeypatch)

    async def main():
        async with AsyncLLM(llm, max_queued=3) as shared:
            first = [await shared.submit(prompt, GREEDY) for prompt in PROMPTS[:2]]
            with pytest.raises(QueueFull, match="max_queued=3"):  # a request counts with all its samples
                await shared.submit(PROMPTS[2], SamplingParams(n=2))
            first.append(await shared.submit(PROMPTS[2], GREEDY))
            with pytest.raises(QueueFull, match="3 samples wait"):
                await shared.generate(PROMPTS[3], GREEDY)
            gate.open()
            await asyncio.gather(*(request.output() for request in first))
            assert shared.num_queued == 0
            await shared.generate(PROMPTS[3], GREEDY)

    asyncio.run(main())


def test_the_event_loop_runs_on_while_the_engine_works(llm, monkeypatch):
    gate = Gate(llm, monkeypatch)

    async def main():
        async with AsyncLLM(llm) as shared:
            task = asyncio.create_task(shared.generate(PROMPTS[0], GREEDY))
            await until(gate.reached.is_set)  # a step is under way and will not end before we let it
            await asyncio.sleep(0)
            gate.open()
            await task

    asyncio.run(main())


def test_closing_fails_what_still_runs_and_may_be_done_twice(llm):
    async def main():
        shared = AsyncLLM(llm)
        task = asyncio.create_task(shared.generate(PROMPTS[0], ENDLESS))
        await until(lambda: llm.engine.scheduler.running)
        await asyncio.gather(shared.close(), shared.close())
        with pytest.raises(RequestFailed, match="closed"):
            await task
        with pytest.raises(RequestFailed, match="closed"):
            await shared.generate(PROMPTS[0], GREEDY)
        await shared.close()
        assert repr(shared) == "AsyncLLM(offline, closed)"
        assert not llm.engine.has_unfinished

    asyncio.run(main())
    assert len(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].token_ids) == 16  # the LLM was only lent


def test_a_thread_that_breaks_down_leaves_nobody_waiting(llm, monkeypatch):
    class Disaster(BaseException):
        pass

    async def main():
        shared = AsyncLLM(llm)

        def broken():
            raise Disaster("gone")

        with monkeypatch.context() as patch:
            patch.setattr(llm.engine, "step", broken)
            with pytest.raises(RequestFailed, match="gone"):
                await shared.generate(PROMPTS[0], GREEDY)
        with pytest.raises(RequestFailed, match="closed"):
            await shared.generate(PROMPTS[0], GREEDY)
        await shared.close()

    asyncio.run(main())


def test_one_may_serve_several_event_loops_in_turn(llm):
    shared = AsyncLLM(llm)
    texts = [asyncio.run(shared.generate(PROMPTS[0], GREEDY)).text for _ in range(2)]
    assert texts[0] == texts[1]

    async def leave():
        await shared.submit(PROMPTS[0], ENDLESS)
        await until(lambda: llm.engine.scheduler.running)

    asyncio.run(leave())  # its loop is gone, so nobody can be told any more
    asyncio.run(until(lambda: not llm.engine.has_unfinished))
    asyncio.run(shared.close())


def test_an_idle_engine_uses_no_processor_time(llm):
    async def main():
        async with AsyncLLM(llm) as shared:
            await shared.generate(PROMPTS[0], GREEDY)
            await until(lambda: not llm.engine.has_unfinished)
            native = shared._thread._thread.native_id

            def processor_time():
                used = next(thread for thread in psutil.Process().threads() if thread.id == native)
                return used.user_time + used.system_time

            before = processor_time()
            await asyncio.sleep(0.4)
            assert processor_time() - before <= 0.05

    asyncio.run(main())


def test_the_last_reference_gives_everything_back_defect_2():
    shared = AsyncLLM(device="cpu", num_kvcache_blocks=64)
    asyncio.run(shared.generate("Once", GREEDY))
    weights = weakref.ref(shared.llm.engine.model_runner.model)
    gc.collect()
    gc.disable()
    try:
        del shared
        assert weights() is None
    finally:
        gc.enable()


@pytest.mark.notebook
@pytest.mark.unmeasured
def test_in_a_notebook_cells_share_the_engine_with_gather():
    cells = ["""
import asyncio
from nanovllm import AsyncLLM, SamplingParams
llm = AsyncLLM(device="cpu", num_kvcache_blocks=256)
params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
outputs = await asyncio.gather(*(llm.generate(f"Story {i}:", params) for i in range(4)))
print([len(output.token_ids) for output in outputs])""", """
task = asyncio.create_task(llm.generate("A task that runs on between cells.", params))
async for delta in llm.stream("Once upon a time", params):
    if delta.finish_reason:
        print(delta.finish_reason)""", """
print((await task).finish_reason)
await llm.close()
print(llm)"""]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = ["".join(output.text for output in cell.outputs if output.output_type == "stream") for cell in notebook.cells]
    assert printed == ["[8, 8, 8, 8]\n", "length\n", "length\nAsyncLLM(offline, closed)\n"]
