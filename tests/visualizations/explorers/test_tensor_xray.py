"""TensorXRay: the engine's own tensors, and what the browser reads out of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.step_inputs import Layout
from tests.visualizations.explorers.node import node_test
from visualizations import TensorXRay
from visualizations.explorers.base import unpack
from visualizations.explorers.tensor_record import watch_tensors, x_ray


def mixed_batch():
    """Sequence 0 decodes; 1, found cached as a whole, recomputes its last token; 2 is a chunk of its prompt."""
    scheduler = Scheduler(BlockManager(16, 4), max_num_batched_tokens=12)
    scheduler.add(Sequence(0, list(range(100, 108)), SamplingParams(max_tokens=9)))
    first = scheduler.schedule()
    scheduler.update(first, [7])
    scheduler.add(Sequence(1, list(range(100, 108)), SamplingParams(max_tokens=9)))
    scheduler.add(Sequence(2, list(range(200, 230)), SamplingParams(max_tokens=9)))
    return scheduler.schedule()


@pytest.fixture(scope="module")
def step() -> dict:
    batch = mixed_batch()
    return x_ray(batch, Layout.of(batch.items, 4), 4)


def test_the_tensors_are_those_of_the_layout(step):
    batch = mixed_batch()
    layout = Layout.of(batch.items, 4)
    for name, values in step["tensors"].items():
        assert values == getattr(layout, name).tolist()
    assert [seq["seq_id"] for seq in step["sequences"]] == [0, 1, 2]
    assert step["tensors"]["slot_mapping"][1] == -1 and step["tensors"]["last_rows"] == [0, 1]
    assert step["dtypes"]["cu_seqlens_q"] == "int32"
    assert json.loads(json.dumps(step)) == step


def test_tensors_of_another_batch_are_refused(step):
    batch = mixed_batch()
    layout = Layout.of(batch.items, 4)
    with pytest.raises(ValueError, match="length of positions=11: must be 12 for this batch"):
        x_ray(batch, replace(layout, positions=layout.positions[:-1]), 4)
    with pytest.raises(ValueError, match="steps=\\[\\]: must be at least one"):
        TensorXRay([])


def test_every_step_of_a_live_engine_is_watched_and_the_engine_left_as_it_was():
    with LLM(kvcache_block_size=4, num_kvcache_blocks=64, max_num_batched_tokens=16) as llm:
        params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        prompts = ["Once upon a time there was a fox who lived", "A dog"]
        plain = llm.generate(prompts, params, use_tqdm=False)
        llm.engine.block_manager.reset_prefix_cache()
        with llm.trace() as trace, watch_tensors(llm) as steps:
            watched = llm.generate(prompts, params, use_tqdm=False)
        assert [out.token_ids for out in watched] == [out.token_ids for out in plain]
        assert "launch" not in vars(llm.engine.model_runner)
        explorer = TensorXRay(steps, decode=lambda token: llm.tokenizer.decode([token]))
    assert len(trace) <= len(steps) <= len(trace) + 1  # the engine may have launched one for nobody
    for one, record in zip(steps, trace):
        assert [(s["seq_id"], s["start"], s["num_tokens"]) for s in one["sequences"]] == \
               [(s["seq_id"], s["start"], s["num_tokens"]) for s in record.scheduled]
    data = unpack(explorer.payload)
    prompt = [data["words"][str(token)] for token in steps[0]["tensors"]["input_ids"] if token]
    assert "".join(prompt).replace("A dog", "").startswith("Once upon a time")
    assert len(explorer.payload) < 4000 and "of 2 sequences" in explorer.summary()


def test_the_still_shows_every_tensor(step):
    texts = [text.get_text() for text in TensorXRay(step).figure().axes[0].texts]
    assert {"input_ids", "positions", "slot_mapping", "cu_seqlens_q", "context_lens", "block_tables", "last_rows"} <= set(texts)
    assert "-1" in texts and "0, 1" in texts
    many = {**step, "sequences": step["sequences"] * 30}
    for name, values in step["tensors"].items():
        many = {**many, "tensors": {**many["tensors"], name: list(np.repeat(values, 30, 0).tolist())}}
    assert TensorXRay(many).figure().get_figheight() < 6


def test_reading_the_tensors_in_javascript(step):
    node_test("tensor_xray.js", f"const step = {json.dumps(step)};" + """
const wrongly = (change) => { const other = structuredClone(step); change(other.tensors); return other; };
test("whose a row is", () => {
  assert.deepEqual([0, 1, 2, 11, 12].map((row) => js.sequenceOfRow(step, row)), [0, 1, 2, 2, -1]);
});
test("what a row stands for", () => {
  const decode = js.tokenAt(step, 0);
  assert.deepEqual([decode.position, decode.phase, decode.last, decode.slot], [8, "decode", 0, decode.block * 4]);
  const cached = js.tokenAt(step, 1);
  assert.deepEqual([cached.position, cached.slot, cached.phase, cached.wrong], [7, -1, "prefill", []]);
  for (let row = 0; row < 12; row++) assert.deepEqual(js.tokenAt(step, row).wrong, []);
});
test("contradictions are found", () => {
  assert.equal(js.contradictions(structuredClone(step)), 0);
  assert.equal(js.contradictions(wrongly((t) => { t.slot_mapping[3] += 1; t.positions[5] = 0; })), 2);
  assert.match(js.tokenAt(wrongly((t) => { t.slot_mapping[3] += 1; }), 3).wrong[0], /the block table says/);
  assert.match(js.tokenAt(wrongly((t) => { t.positions[5] = 0; }), 5).wrong[0], /schedules position 3 here/);
  assert.match(js.tokenAt(wrongly((t) => { t.slot_mapping[1] = 7; }), 1).wrong[0], /found cached/);
  assert.match(js.tokenAt(wrongly((t) => { t.slot_mapping[4] = -1; }), 4).wrong[0], /not in the cache yet/);
});
test("what speaks of the same", () => {
  const slot = js.related(step, { name: "slot_mapping", i: 0 });
  const same = "input_ids:0 positions:0 cu_seqlens_q:0 cu_seqlens_q:1 context_lens:0 block_tables:0:2 last_rows:0";
  for (const k of same.split(" "))
    assert.ok(slot.lit.has(k), k);
  assert.ok(!slot.lit.has("positions:1"));
  assert.deepEqual(js.related(step, { name: "cu_seqlens_q", i: 2 }).rows, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
  assert.match(js.related(step, { name: "cu_seqlens_q", i: 3 }).says, /number of all rows/);
  const shared = js.related(step, { name: "block_tables", i: 0, j: 0 });
  assert.ok(shared.lit.has("block_tables:1:0") && /only reads it/.test(shared.says));
  assert.match(js.related(step, { name: "block_tables", i: 1, j: 2 }).says, /padding/);
  assert.match(js.related(step, { name: "context_lens", i: 2 }).says, /0 already in the cache and 10 of this step/);
  assert.equal(js.related(step, { name: "last_rows", i: 1 }).seq, 1);
});
test("arrows reach every tensor and stay inside", () => {
  let at = { name: "input_ids", i: 1 };
  const seen = "DownDownDownRightRightRightRightRightRight".match(/[A-Z][a-z]+/g)
    .map((way) => (at = js.move(step, at, `Arrow${way}`)).name);
  assert.equal(seen.join(" "), "positions slot_mapping cu_seqlens_q context_lens " +
    "block_tables block_tables block_tables last_rows last_rows");
  assert.deepEqual(js.move(step, { name: "cu_seqlens_q", i: 3 }, "ArrowDown"), { name: "cu_seqlens_q", i: 3 });
  assert.deepEqual(js.move(step, { name: "context_lens", i: 0 }, "ArrowUp"), { name: "slot_mapping", i: 0 });
  assert.deepEqual(js.move(step, { name: "input_ids", i: 0 }, "ArrowLeft"), { name: "input_ids", i: 0 });
  assert.deepEqual(js.move(step, { name: "input_ids", i: 0 }, "ArrowUp"), { name: "input_ids", i: 0 });
});
test("a long prompt is folded, but never what is chosen", () => {
  const long = { tensors: { cu_seqlens_q: [0, 1, 400] } };
  const shown = js.shownRows(long, 200);
  assert.ok(shown.length < 40 && shown.includes(200) && shown.includes(0) && shown.includes(399));
  assert.equal(shown.filter((row) => row === null).length, 2);
  assert.deepEqual(js.shownRows(step, 0), [...Array(12).keys()]);
});
""")
