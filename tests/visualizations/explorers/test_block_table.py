"""BlockTableExplorer: what it packs, from every kind of source, and how it reads it in the browser."""

import pytest

from nanovllm import LLM
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence
from tests.visualizations.explorers.node import node_test
from tests.visualizations.explorers.test_scheduler import asked
from tests.visualizations.samples import serve, shared
from visualizations import BlockTableExplorer, Simulation
from visualizations.explorers.base import unpack


def test_a_trace_is_packed_whole_with_what_its_tokens_say(shared_trace):
    prompts = {seq.seq_id: seq.prompt_token_ids for seq in shared()[2]}
    explorer = BlockTableExplorer(shared_trace, tokens=prompts, decode=lambda token: f"<{token}>", seq_id=1, position=9)
    data = unpack(explorer.payload)
    for packed, record in zip(data["records"], shared_trace, strict=True):
        assert packed["block_tables"] == {str(i): table for i, table in record.block_tables.items()}
    assert data["texts"]["prompts"]["1"] == prompts[1] and data["texts"]["words"][str(prompts[1][0])] == f"<{prompts[1][0]}>"
    assert data["chosen"] == [1, 9] and "live" not in data


def test_a_simulation_is_driven_and_says_what_goes_next():
    explorer = BlockTableExplorer(Simulation(num_blocks=8, block_size=4))
    asked(explorer, do="add", prompt="three short words", max_tokens=4)
    answer, data = asked(explorer, do="run")
    assert answer["ok"] and data["live"]["unfinished"] is False
    simulation = explorer.source
    assert data["records"][-1]["eviction_order"] == simulation.scheduler.block_manager.eviction_order()
    assert [data["texts"]["words"][str(t)] for t in data["texts"]["prompts"]["0"]] == ["three", "short", "words"]


def test_books_kept_by_hand_are_looked_at_again():
    manager, first, second = BlockManager(6, 4), Sequence(0, list(range(9))), Sequence(1, list(range(8)))
    explorer = BlockTableExplorer(manager, [first, second])
    manager.append(first, 9)
    first.num_computed_tokens = 9
    manager.commit(first, 0)
    explorer.refresh("sequence 0 gets room for 9 tokens")
    manager.allocate(second, manager.find_cached_prefix(second))
    explorer.refresh("sequence 1 finds both of its blocks")
    data = unpack(explorer.payload)
    assert [r["block_tables"] for r in data["records"]] == [{}, {"0": [0, 1, 2]}, {"0": [0, 1, 2], "1": [0, 1]}]
    assert data["records"][2]["ref_counts"] == {"0": 2, "1": 2} and data["records"][2]["blocks"] == "ssufff"
    assert data["records"][2]["context_lens"] == {"0": 9, "1": 8} and data["records"][2]["eviction_order"] == [3, 4, 5]
    assert data["says"][1:] == ["sequence 0 gets room for 9 tokens", "sequence 1 finds both of its blocks"]
    answer, _ = asked(explorer, do="step")
    assert "request='step'" in answer["error"]
    assert explorer.figure().axes


def test_a_live_engine_shows_its_tokens():
    with LLM(kvcache_block_size=8, num_kvcache_blocks=16) as llm:
        explorer = BlockTableExplorer(llm)
        asked(explorer, do="add", prompt="Once upon a time there was a fox", max_tokens=3)
        _, data = asked(explorer, do="run")
        ids = data["texts"]["prompts"]["0"]
        assert "".join(data["texts"]["words"][str(token)] for token in ids) == "Once upon a time there was a fox"
        explorer.close()


def test_what_is_no_source_and_no_sequence_of_the_run_is_refused(shared_trace):
    with pytest.raises(ValueError, match="must be a Trace, Simulation, Scheduler, LLM or LLMEngine"):
        BlockTableExplorer(5)
    with pytest.raises(ValueError, match="seq_id=9: must be one of \\[0, 1, 2\\]"):
        BlockTableExplorer(shared_trace, seq_id=9)


def test_a_long_run_costs_kilobytes_and_its_still_stays_small():
    prompts = [[i * 100 + j for j in range(60)] for i in range(24)]
    trace, *_ = serve(prompts, max_tokens=40, num_blocks=256, block_size=8, budget=64)
    explorer = BlockTableExplorer(trace, step=60)
    assert len(explorer.payload) < 60_000
    assert explorer.figure().get_figheight() < 8 and "256 blocks of 8 tokens" in explorer.summary()


def test_the_still_rings_the_chosen_token_s_block_and_says_the_way_there(shared_trace):
    step = next(r.step for r in shared_trace if r.ref_counts)
    record, size = shared_trace[step], shared_trace.meta["block_size"]
    block = record.block_tables[1][1]
    fig = BlockTableExplorer(shared_trace, step=step, seq_id=1, position=size + 1).figure()
    words = next(t.get_text() for t in fig.axes[0].texts if t.get_gid() == "caption").replace("\n", " ")
    assert f"entry 1 of its table is block {block} (ringed)" in words and f"{block} × {size} + 1 = {block * size + 1}." in words
    assert ("read it there, too" in words or "reads it there, too" in words) == (block in record.ref_counts)
    rings = [patch for patch in fig.axes[0].patches if patch.get_gid() == "lit"]
    assert len(rings) == 1 + sum(block in table for table in record.block_tables.values())
    plain = BlockTableExplorer(shared_trace, step=step).figure()
    assert not [patch for patch in plain.axes[0].patches if patch.get_gid() == "lit"]


def test_reading_the_run_in_javascript():
    node_test("block_table.js", """
const record = (block_tables, tokens, context_lens) => ({ block_tables, tokens, context_lens });
const records = [record({ 0: [2] }, { 0: 8 }, { 0: 4 }), record({ 0: [2, 1], 1: [2] }, { 0: 9 }, { 0: 5, 1: 3 }),
                 record({ 1: [2] }, {}, {})];
const run = { meta: { prompts: { 0: 4 } }, records };
test("a position, a block and a slot", () => {
  assert.deepEqual(js.slotOf([7, 3], 5, 4), { logical: 1, offset: 1, block: 3, slot: 13 });
  assert.deepEqual(js.slotOf([7, 3], 0, 4), { logical: 0, offset: 0, block: 7, slot: 28 });
  assert.equal(js.slotOf([7, 3], 8, 4), null);
  assert.equal(js.slotOf(undefined, 0, 4), null);
});
test("tokens appear with the record that drew them", () => {
  const drawn = js.drawnTokens(records);
  assert.deepEqual(drawn.get(0), [[0, 8], [1, 9]]);
  assert.deepEqual([0, 1, 2].map((i) => js.lengthAt(run, drawn, 0, i)), [5, 6, 6]);
  const texts = { prompts: { 0: [1, 2, 3, 4] }, words: { 1: "a", 8: "b", 9: "c" } };
  assert.deepEqual([0, 1, 4, 5, 6].map((p) => js.wordAt(texts, drawn, 0, p)), ["a", null, "b", "c", null]);
  assert.equal(js.wordAt(texts, drawn, 1, 0), null);
});
test("who held a block last", () => {
  assert.deepEqual(js.lastHolder(run, 1, 2), { seqId: 0, logical: 1, index: 1 });
  assert.equal(js.lastHolder(run, 3, 2), null);
});
test("the tables' window follows what is chosen", () => {
  const few = js.tableLayout(600, 3, 6);
  assert.deepEqual([few.rows, few.firstRow, few.first, few.pitch], [3, 0, 0, 34]);
  const many = js.tableLayout(600, 64, 60, 63, 59);
  assert.equal(many.firstRow + many.rows, 64);
  assert.equal(many.first + many.columns, 60);
  assert.ok(many.pitch >= 15 && many.rows * many.pitch <= 330);
  for (let row = 0; row < 64; row++) {
    const at = js.tableLayout(600, 64, 60, row);
    assert.ok(row >= at.firstRow && row < at.firstRow + at.rows);
  }
});
test("tokens flow in blocks that stay whole", () => {
  const placed = js.flow([...Array(8).keys()], 4, () => 20, 150);
  assert.deepEqual(placed.map((chip) => chip.row), [0, 0, 0, 0, 1, 1, 1, 1]);
  assert.deepEqual(js.flow([...Array(8).keys()], 4, () => 60, 150).map((chip) => chip.row), [0, 0, 1, 1, 2, 2, 3, 3]);
  assert.deepEqual(placed.map((chip) => chip.logical), [0, 0, 0, 0, 1, 1, 1, 1]);
});
""")
