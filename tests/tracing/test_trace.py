import json
import re
import zipfile
from dataclasses import asdict

import pytest

from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams
from nanovllm.tracing import trace_file
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from nanovllm.tracing.trace_file import PagedRecords
from tests.engine.fake_model import make


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
        trace.records.append(StepRecord.of_step(scheduler, step, step * 0.01, 0.01, batch, tokens, finished))
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
    assert loaded == trace and loaded[3] == trace[3] and repr(loaded[:]) == repr(trace)


def test_another_version_or_another_file_is_refused(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"version": 1, "meta": {}, "records": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="format version 1: must be 2"):
        Trace.load(tmp_path / "old.json")
    for name in ("text.trace", "empty.zip"):
        (tmp_path / name).write_text("no trace", encoding="utf-8")
        if name.endswith("zip"):
            zipfile.ZipFile(tmp_path / name, "w").close()
        with pytest.raises(ValueError, match="format version None: must be 2"):
            Trace.load(tmp_path / name)


def test_a_long_run_is_written_as_it_goes_and_read_by_page(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_file, "PAGE", 8)
    whole = record(num_blocks=9, block_size=2)
    whole.meta["arrivals"] = {0: -0.5, 1: 0.0, 2: 0.25}
    recorder = Trace({**whole.meta}, max_records=4, path=tmp_path / "run.trace")
    for r in whole:
        recorder.append(r)
        if r.step == 12:  # readable before it is complete
            assert Trace.load(tmp_path / "run.trace")[7] == whole[7]
    recorder.close()
    recorder.close()
    assert len(recorder) == 4 and recorder[-1] == whole[-1]
    loaded = Trace.load(tmp_path / "run.trace")
    assert len(loaded) == len(whole) > 16 and loaded.meta == whole.meta and "page by page" in repr(loaded)
    read = []
    monkeypatch.setattr(PagedRecords, "_read_page", lambda self, page, read_page=PagedRecords._read_page:
                        (read.append(page), read_page(self, page))[1])
    loaded = Trace.load(tmp_path / "run.trace")
    assert loaded[1] == whole[1] and loaded[-1] == whole[-1] and read == [0, (len(whole) - 1) // 8]
    window = loaded[5:11]
    assert isinstance(window, Trace) and [r.step for r in window] == [5, 6, 7, 8, 9, 10] and window.meta == whole.meta
    with pytest.raises(IndexError):
        loaded[len(whole)]


def test_an_empty_trace_can_be_saved(tmp_path):
    Trace({"model": "none"}).save(tmp_path / "run.trace")
    assert Trace.load(tmp_path / "run.trace") == Trace({"model": "none"})


def test_memory_is_bounded_in_requests_too():
    trace = Trace({}, max_records=5)
    for i in range(5000):
        trace.meta["prompts"][i] = trace.meta["arrivals"][i] = 1
        trace.append(StepRecord(i, 0, 0, 8, [], {}, [i], [], [], [], {}, {}, {}, {}, "f", {}))
    assert [r.step for r in trace] == list(range(4995, 5000)) and len(trace.meta["prompts"]) < 2000
    assert set(range(4995, 5000)) <= set(trace.meta["arrivals"])
    with pytest.raises(ValueError, match="max_records=0"):
        Trace({}, max_records=0)


def test_a_page_of_a_large_run_is_small(tmp_path):
    """Tables that grow by a block now and then cost what changed, not what they hold."""
    tables = {i: list(range(i * 40, i * 40 + 30)) for i in range(64)}
    trace = Trace({"block_size": 16})
    for step in range(200):
        tables = {i: table + [2560 + step * 4 + i // 16] if step % 16 == i % 16 else table for i, table in tables.items()}
        held = {b for table in tables.values() for b in table}
        trace.append(StepRecord(
            step, step * 0.01, 0.01, 2048, [{"seq_id": i, "phase": "decode", "start": 480 + step, "num_tokens": 1,
                                             "reason": "its next token"} for i in tables], {}, list(tables), [], [], [],
            {i: 7 * i + step for i in tables}, {}, tables, {i: 480 + step for i in tables},
            "".join("u" if b in held else "f" for b in range(4096)), {}))
    trace.save(tmp_path / "run.trace")
    plain = len(json.dumps([asdict(r) for r in trace], separators=(",", ":")))
    assert (tmp_path / "run.trace").stat().st_size < plain / 50
    assert Trace.load(tmp_path / "run.trace") == trace


def test_everyone_left_out_is_told_why():
    trace = record(num_blocks=9, block_size=2)
    assert all(set(r.preemption_reasons) == set(r.preempted) for r in trace) and any(r.preempted for r in trace)
    counted = re.compile(r"needs (1 more block|([02-9]|\d\d+) more blocks) and (1 is|([02-9]|\d\d+) are) free")
    assert all(counted.search(reason) for r in trace for reason in r.preemption_reasons.values())
    assert all(s["reason"] for r in trace for s in r.scheduled)
    assert any("blocks" in reason for r in trace for reason in r.left_waiting.values())


def test_an_abort_between_steps_stands_in_the_last_record():
    trace = record(num_blocks=12, block_size=2)
    seq = Sequence(9, [1], SamplingParams())
    seq.finish_reason = "abort"
    trace.ended(seq)
    assert trace[-1].finished[-1] == {"seq_id": 9, "reason": "abort"}
    Trace().ended(seq)  # nothing ran yet: nowhere to note it
