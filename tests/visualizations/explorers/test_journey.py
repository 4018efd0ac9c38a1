"""The journey of a prompt: real calls, real lines, real values, in data that a browser can read."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import nanovllm
from nanovllm import LLM, SamplingParams
from tests.visualizations.explorers.node import node_test
from visualizations import theme
from visualizations.explorers.base import unpack
from visualizations.explorers.journey import STILL_LINES, JourneyExplorer
from visualizations.explorers.journey_record import record_journey
from visualizations.figures.journey import NAMES

PARAMS = SamplingParams(temperature=0.7, max_tokens=5, seed=3, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM(kvcache_block_size=8, num_kvcache_blocks=24, max_num_batched_tokens=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def journey(llm) -> dict:
    return record_journey(llm, llm.render_chat([{"role": "user", "content": "Tell me a story about a fox and a hen."}]), PARAMS)


def test_the_tokens_are_those_that_generate_draws(llm, journey):
    prompt = llm.render_chat([{"role": "user", "content": "Tell me a story about a fox and a hen."}])
    text = llm.generate(prompt, PARAMS, use_tqdm=False)[0].text
    assert journey["stops"][-1]["text"] == text
    assert "".join(journey["words"][journey["num_prompt_tokens"]:]) == text
    assert not llm.engine.has_unfinished


def test_every_room_is_visited_in_an_order_that_the_engine_allows(journey):
    stops = journey["stops"]
    assert [stop["room"] for stop in stops[:3]] == ["tokenizer", "waiting queue", "waiting queue"]
    assert {stop["room"] for stop in stops} == set(NAMES)
    prompt, size = journey["num_prompt_tokens"], journey["block_size"]
    assert stops[-1]["step"] == -(-prompt // 16) + 5 - 1  # chunks of the prompt, the last of which draws the first token
    for before, after in pairwise(stops):
        assert after["step"] in (before["step"], before["step"] + 1) and after["tokens"] - before["tokens"] in (0, 1)
        if after["table"] and before["table"]:
            assert after["table"][:len(before["table"])] == before["table"]
        assert after["computed"] <= len(after["table"]) * size
    drawn = [stop for stop in stops if stop["room"] == "sampler"]
    assert len(drawn) == 5


def test_lines_that_ran_are_lines_of_the_file(journey):
    root = Path(nanovllm.__file__).parents[1]
    for name, source in journey["sources"].items():
        lines = (root / source["file"]).read_text(encoding="utf-8").split("\n")[source["first"] - 1:][:len(source["lines"])]
        assert [line.strip() for line in lines] == [line.strip() for line in source["lines"]], name
    for stop in journey["stops"]:
        source = journey["sources"][stop["source"]]
        assert stop["calls"] >= 1 and stop["lit"]
        assert all(source["first"] < number < source["first"] + len(source["lines"]) for number in stop["lit"])
    attention = next(stop for stop in journey["stops"] if stop["source"] == "Attention.forward")
    assert attention["calls"] == 6  # once a layer
    assert {"Scheduler.schedule", "BlockManager.append", "ModelRunner.prepare", "draw",
            "IncrementalDetokenizer.push"} <= {stop["source"] for stop in journey["stops"]}


def test_values_are_what_the_objects_held(journey):
    stops = journey["stops"]
    drawn = next(stop for stop in stops if stop["room"] == "sampler")
    word = journey["words"][journey["num_prompt_tokens"]]
    assert dict(map(tuple, drawn["values"]))["word"] == repr(word)
    tables = [dict(map(tuple, stop["values"])).get("seq.block_table") for stop in stops]
    assert all(shown == str(stop["table"]) for shown, stop in zip(tables, stops) if shown)
    assert stops[-1]["table"] == [] and "c" in stops[-1]["blocks"]  # given back, and still findable


def test_tracing_is_put_back_and_a_busy_engine_is_left_alone(llm):
    before = sys.gettrace()
    seen = []

    def tracer(frame, event, argument):
        seen.append(event)
        return None

    sys.settrace(tracer)
    try:
        record_journey(llm, "Once", SamplingParams(max_tokens=1))
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    llm.engine.add_request([5, 6], SamplingParams(max_tokens=2))
    with pytest.raises(ValueError, match="idle"):
        record_journey(llm, "Once")
    llm.engine.abort(next(iter(llm.engine.scheduler.waiting)).seq_id)


def test_travels_in_kilobytes_and_survives_json(journey):
    explorer = JourneyExplorer(json.loads(json.dumps(journey)), step=7)
    assert len(explorer.payload) < 12_000
    data = unpack(explorer.payload)
    assert data["stops"] == json.loads(json.dumps(journey["stops"])) and len(data["rooms"]) == 8


def test_the_still_shows_the_stop_its_code_and_its_values(journey):
    explorer = JourneyExplorer(journey, step=5)
    stop = journey["stops"][5]
    fig = explorer.figure()
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert any(stop["source"] in text for text in texts) and {name for name, _ in stop["values"]} <= set(texts)
    assert len(fig.axes[1].patches) == min(len(stop["lit"]), STILL_LINES)
    assert "stops" in explorer.summary() and repr(journey["stops"][-1]["text"]) in explorer.summary()


@pytest.mark.parametrize("step", range(0, 18, 3))
def test_the_still_fits_a_page_and_no_text_lies_on_another(journey, step):
    fig = JourneyExplorer(journey, step=step).figure()
    assert fig.get_figwidth() <= theme.WIDEST
    fig.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for ax in fig.axes for text in ax.texts if text.get_text().strip()]
    assert all(box.x1 <= fig.bbox.x1 and box.y0 >= 0 for _, box in boxes)
    touching = [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.shrunk(0.99, 0.9).overlaps(other)]
    assert not touching


def test_reading_the_journey_in_javascript():
    node_test("journey.js", """
const stops = [
  { room: "a", step: 0, tokens: 3, computed: 0, scheduled: null, table: [], blocks: "ff" },
  { room: "b", step: 1, tokens: 3, computed: 0, scheduled: [0, 3], table: [9], blocks: "fu" },
  { room: "a", step: 1, tokens: 4, computed: 3, scheduled: null, table: [9], blocks: "fu" },
  { room: "b", step: 2, tokens: 5, computed: 4, scheduled: null, table: [], blocks: "fc" }];
test("the next stop in a room goes round", () => {
  assert.deepEqual([0, 1, 2, 3].map((i) => js.nextIn(stops, "a", i)), [2, 2, 0, 0]);
  assert.equal(js.nextIn(stops, "nowhere", 0), -1);
});
test("steps before and after", () => {
  assert.deepEqual([js.stepFrom(stops, 0, 1), js.stepFrom(stops, 2, 1), js.stepFrom(stops, 3, 1)], [1, 3, 3]);
  assert.deepEqual([js.stepFrom(stops, 3, -1), js.stepFrom(stops, 1, -1), js.stepFrom(stops, 0, -1)], [1, 0, 0]);
});
test("what a token is", () => {
  assert.deepEqual([0, 2, 3].map((i) => js.tokenState(stops[1], i)), ["now", "now", "later"]);
  assert.deepEqual([2, 3, 4].map((i) => js.tokenState(stops[2], i)), ["cached", "waiting", "later"]);
  assert.equal(js.stopOfToken(stops, 1), 0);
  assert.equal(js.stopOfToken(stops, 4), 3);
});
test("a block fills with the tokens of its sequence", () => {
  const data = { block_size: 4, num_prompt_tokens: 2, seq_id: 1 };
  assert.deepEqual(js.blockLook(data, stops[1], 9, 1, stops[0]),
                   { state: "u", seqId: 1, filled: 0.75, prompt: 0.5, lit: true });
  assert.equal(js.blockLook(data, stops[2], 9, 1, stops[1]).lit, false);
  assert.deepEqual(js.blockLook(data, stops[3], 9, 1, stops[2]), { state: "c", seqId: 1 });
});
""")
