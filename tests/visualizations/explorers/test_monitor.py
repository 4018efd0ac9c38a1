"""BatchMonitor: what it sees of a running engine, and that it neither slows nor keeps nor breaks it."""

import asyncio
import gc
import json
import time
import weakref
from itertools import pairwise

import pytest

from nanovllm import LLM, AsyncLLM, SamplingParams
from tests.visualizations.explorers.node import node_test
from visualizations.explorers import batch_watch
from visualizations.explorers.base import unpack
from visualizations.explorers.monitor import BatchMonitor

PARAMS = SamplingParams(temperature=0.8, max_tokens=40, seed=2, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM(kvcache_block_size=8, num_kvcache_blocks=24) as llm:
        yield llm


@pytest.fixture
def monitor(llm):
    monitor = BatchMonitor(llm)
    monitor.sent = []
    monitor.send = monitor.sent.append
    yield monitor
    monitor.close()


def test_what_it_saw_at_rest_is_what_happened(llm, monitor):
    outputs = llm.generate(["Once upon a time", "The hen and the fox"], PARAMS, use_tqdm=False)
    monitor.watch.look()
    last = monitor.watch.frames[-1]
    assert last["decode"] == 2 * 39 and last["finished"] == 2 and last["running"] == last["waiting"] == last["used"] == 0
    assert last["prompt"] == sum(len(out.prompt_token_ids) - out.num_cached_tokens for out in outputs)
    assert last["cached"] + last["free"] == 24 and last["cached"] > 0
    for out in outputs:
        assert monitor.watch.texts[out.request_id] == out.text
    rows = {row[0]: row for row in last["rows"]}
    for out in outputs:
        prompt = len(out.prompt_token_ids)
        assert rows[out.request_id][1:6] == [prompt, 40, prompt + 40, prompt + 40, "f"]


def test_whoever_is_aborted_last_is_not_shown_running_for_ever(llm, monitor):
    stream = llm.stream(["Once upon a time", "The hen and the fox"], PARAMS)
    for _ in range(8):
        next(stream)
    stream.close()  # a user who goes: both are aborted between two steps
    assert not llm.engine.has_unfinished
    time.sleep(2 * batch_watch.REST_SECONDS)
    last = monitor.watch.frames[-1]
    assert last["running"] == last["used"] == 0 and {row[5] for row in last["rows"]} == {"f"}


def test_looks_come_ten_times_a_second_at_most_while_texts_stream(llm, monitor):
    for _ in llm.stream("Once upon a time there was a fox who", PARAMS):
        time.sleep(0.02)
    frames = [frame for frame in monitor.watch.frames if not frame.get("quiet")]
    apart = [later["time"] - sooner["time"] for sooner, later in pairwise(frames)]
    assert len(frames) >= 5 and min(apart) >= 0.0999
    shown = [frame["rows"][-1][-1] for frame in frames]
    assert shown == sorted(shown) and len(set(shown)) >= 4  # characters of a text that grows


def test_messages_add_up_to_the_whole(llm, monitor, monkeypatch):
    monkeypatch.setattr(batch_watch, "SECONDS_APART", 0.0)
    monkeypatch.setattr(batch_watch, "SHARE", float("inf"))
    monkeypatch.setattr(batch_watch, "KEPT", 16)
    empty = unpack(monitor.payload) | {"kept": 16}
    llm.generate(["Once upon a time", "A hen"], PARAMS, use_tqdm=False)
    monitor.refresh()
    whole = unpack(monitor.payload)
    assert whole["told"] > 40 and len(whole["frames"]) <= 16
    node_test("monitor.js", f"const [EMPTY, SENT, WHOLE] = {json.dumps([empty, monitor.sent, whole])};" + """
test("messages", () => {
  for (const message of SENT) assert.ok(js.take(EMPTY, message));
  assert.ok(!js.take(EMPTY, SENT.at(-1)) && !js.take(EMPTY, { ...SENT.at(-1), told: EMPTY.told + 2 }));
  assert.deepEqual(EMPTY.frames, WHOLE.frames);
  assert.deepEqual(EMPTY.texts, WHOLE.texts);
});
""")


def test_after_the_last_step_one_more_look_comes_by_itself(llm, monitor):
    llm.generate("Once", SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
    end = time.monotonic() + 10
    while monitor.watch.frames[-1]["running"] and time.monotonic() < end:
        time.sleep(0.02)
    assert monitor.watch.frames[-1]["running"] == 0 and monitor.sent[-1]["frames"] == monitor.watch.frames[-1:]


def test_many_short_runs_are_not_looked_at_more_often(llm, monitor):
    for _ in range(30):
        llm.generate("Once", SamplingParams(max_tokens=1), use_tqdm=False)
    took = monitor.watch.frames[-1]["time"]
    assert len(monitor.sent) <= 10 * took + 2 and monitor.watch._totals["finished"] == 30


def test_a_rest_does_not_count_as_time_of_work(llm, monitor):
    for _ in range(2):
        llm.generate("Once", SamplingParams(max_tokens=12, ignore_eos=True), use_tqdm=False)
        if timer := monitor.watch._timer:
            timer.join(10)  # until it has looked at the end, too
        # A rest that ends before the next look is due is not told, and on a slow machine looks are further apart.
        time.sleep(max(0.3, monitor.watch._due - time.perf_counter()))
    frames = monitor.watch.frames
    quiet = [i for i, frame in enumerate(frames) if frame.get("quiet")]
    assert len(quiet) == 2 and quiet[0] == 0
    gap = frames[quiet[1]]["time"] - frames[quiet[1] - 1]["time"]
    assert gap > 0.2 and frames[quiet[1]]["steps"] == frames[quiet[1] - 1]["steps"] == 12


def test_more_sequences_than_rows_are_followed_a_part_at_a_time(llm, monitor, monkeypatch):
    monkeypatch.setattr(batch_watch, "SECONDS_APART", 0.0)
    monkeypatch.setattr(batch_watch, "SHARE", float("inf"))
    monkeypatch.setattr(batch_watch, "ROWS", 3)
    params = [SamplingParams(temperature=0, max_tokens=2 + 3 * i, ignore_eos=True) for i in range(6)]
    outputs = llm.generate([f"Story number {i}" for i in range(6)], params, use_tqdm=False)
    seen = set()
    for frame in monitor.watch.frames:
        ids = [row[0] for row in frame["rows"]]
        assert len(ids) <= 3 and ids == sorted(ids)
        running = [row[0] for row in frame["rows"] if row[5] == "r"]
        assert len(running) >= min(3, frame["running"]) or frame["waiting"]
        seen |= set(ids)
    assert seen == {out.request_id for out in outputs}
    for out in outputs[-3:]:
        assert monitor.watch.texts[out.request_id] == out.text


def test_asyncllm_is_watched_in_its_own_thread():
    async def serve():
        async with AsyncLLM(kvcache_block_size=8, num_kvcache_blocks=24) as llm:
            monitor = BatchMonitor(llm)
            outputs = await asyncio.gather(*(llm.generate(text, PARAMS) for text in ("Once", "Twice")))
            monitor.watch.look()
            assert {monitor.watch.texts[out.request_id] for out in outputs} == {out.text for out in outputs}
            monitor.close()
    asyncio.run(serve())


def test_the_engine_still_looks_ahead_and_is_not_kept_alive():
    llm = LLM(kvcache_block_size=8, num_kvcache_blocks=24, async_scheduling=True)
    monitor = BatchMonitor(llm)
    assert llm.engine._depth == 2
    llm.generate("Once upon a time", PARAMS, use_tqdm=False)
    engine = weakref.ref(llm.engine)
    time.sleep(2 * batch_watch.REST_SECONDS)  # the last look holds it for a moment
    llm.close()
    del llm
    gc.collect()
    assert engine() is None
    assert "2 requests" not in monitor.summary() and "1 request finished" in monitor.summary()
    monitor.watch.look()
    assert monitor.figure().axes


def test_closed_it_costs_nothing_and_sees_nothing(llm, monitor):
    monitor.close()
    llm.generate("Once", SamplingParams(max_tokens=3), use_tqdm=False)
    assert monitor.watch.frames == [] and llm.engine._listeners == []


def test_a_fault_of_the_view_ends_the_view_and_not_the_run(llm, monitor):
    monitor.watch._tell = lambda *news: 1 / 0
    with pytest.warns(UserWarning, match="live view of the engine stopped: ZeroDivisionError"):
        output = llm.generate("Once", SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)[0]
    assert len(output.token_ids) == 3 and llm.engine._listeners == []
    llm.engine.check_integrity()


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="an LLM, LLMEngine or AsyncLLM"):
        BatchMonitor("llm")


def test_reading_looks_in_javascript():
    node_test("monitor.js", """
const frame = (time, decode, quiet) => ({ time, decode, prompt: 0, quiet });
test("speeds", () => {
  const spans = js.speedsOf([frame(0, 0), frame(0.01, 9), frame(0.1, 10), frame(0.2, 30)]);
  assert.deepEqual(spans.map(({ from, to }) => [from, to]), [[0, 0.1], [0.1, 0.2]]);
  assert.deepEqual(spans.map(({ decode }) => Math.round(decode)), [100, 200]);
});
test("the recent rate does not reach over a rest", () => {
  const frames = [frame(0, 0, true), frame(0.5, 50), frame(0.6, 50, true), frame(1.0, 90), frame(1.1, 100)];
  assert.equal(Math.round(js.recentRate(frames, 4, "decode")), 100);
  assert.equal(js.recentRate(frames, 0, "decode"), 0);
});
test("rounded", () => assert.deepEqual([0, 7.25, 20, 1234.6].map(js.rounded), ["0", "7.3", "20", "1,235"]));
""")
