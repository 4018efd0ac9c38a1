import json

import pytest

from nanovllm.engine.sequence import Sequence
from nanovllm.engine.trace import StepRecord, Trace
from nanovllm.sampling_params import SamplingParams

from .fake_model import make


def record(**limits):
    scheduler, runner = make(**limits)
    for i in range(3):
        scheduler.add(Sequence(i, [7] * 4 + [i] * 3, SamplingParams(max_tokens=8)))
    trace = Trace({"block_size": scheduler.block_manager.block_size, "prompts": {i: 7 for i in range(3)}})
    step = 0
    while scheduler.has_unfinished:
        batch = scheduler.schedule()
        tokens = runner.run(batch)
        finished = scheduler.update(batch, tokens)
        trace.records.append(StepRecord.of(step, step * 0.01, 0.01, scheduler, batch, tokens, finished))
        step += 1
    return trace


def test_records_account_for_every_token_and_block():
    trace = record(num_blocks=12, block_size=2)
    drawn = [i for r in trace for i in r.tokens]
    assert {i: drawn.count(i) for i in range(3)} == {0: 8, 1: 8, 2: 8}
    assert [f["seq_id"] for r in trace for f in r.finished] and all(f["reason"] == "length" for r in trace for f in r.finished)
    for r in trace:
        assert len(r.blocks) == 12 and r.num_prefill_tokens + r.num_decode_tokens == sum(s["num_tokens"] for s in r.scheduled)
        held = {b for table in r.block_tables.values() for b in table}
        assert r.num_blocks_in_use == len(held)
        assert r.ref_counts == {b: n for b in held if (n := sum(b in t for t in r.block_tables.values())) > 1}
    assert any(r.ref_counts for r in trace) and sum(sum(r.hit_tokens.values()) for r in trace) >= 8


def test_save_and_load_give_back_the_same(tmp_path):
    trace = record(num_blocks=9, block_size=2)
    assert any(r.preempted for r in trace)
    trace.save(tmp_path / "run.json")
    loaded = Trace.load(tmp_path / "run.json")
    assert loaded == trace and loaded[3] == trace[3] and repr(loaded) == repr(trace)


def test_another_version_is_refused(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"version": 0, "meta": {}, "records": []}))
    with pytest.raises(ValueError, match="format version 0: must be 1"):
        Trace.load(tmp_path / "old.json")


def test_chrome_trace_has_a_span_for_every_scheduled_sequence():
    trace = record(num_blocks=9, block_size=2)
    events = json.loads(json.dumps(trace.to_chrome_trace()))["traceEvents"]
    spans = [e for e in events if e["ph"] == "X" and e["pid"] == 1]
    assert len(spans) == sum(len(r.scheduled) for r in trace) and {e["tid"] for e in spans} == {0, 1, 2}
    assert sum(e["name"] == "preempted" for e in events) == sum(len(r.preempted) for r in trace)
    for e in (e for e in events if e.get("name") == "blocks"):
        assert sum(e["args"].values()) == 9
