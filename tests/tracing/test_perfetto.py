"""What Perfetto needs of a file, and what a reader needs to find in it."""

import gzip
import json
from collections import defaultdict

import pytest

from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from tests.tracing.test_trace import record


@pytest.fixture(scope="module")
def trace():
    trace = record(num_blocks=9, block_size=2)
    trace.meta["arrivals"] = {0: -1.0, 1: 0.0, 2: 0.015}
    for r in trace:
        r.phases = {name: [r.time + i * 0.0025, 0.0025] for i, name in enumerate(("schedule", "launch", "collect", "update"))}
        r.duration = 0.013  # the next step begins before this one has ended, as in a pipelined engine
    trace.operations = [{"track": "GPU 0, stream 7", "name": "gemm", "time": 0.02 - i / 1000, "duration": 0.001}
                        for i in range(9)]
    return trace


def check_structure(events):
    """The rules of the format: known events with their keys, in order of time, spans of a track one after the other."""
    named, ends, before = set(), defaultdict(float), 0.0
    needed = {"M": {"name", "pid", "args"}, "X": {"name", "pid", "tid", "ts", "dur"}, "C": {"name", "pid", "ts", "args"},
              "i": {"name", "pid", "tid", "ts", "s"}}
    for e in events:
        assert needed[e["ph"]] <= e.keys() and e["pid"] > 0 and e.get("tid", 1) > 0
        if e["ph"] == "M":
            named.add((e["pid"], e.get("tid")))
            continue
        assert e["ts"] >= before
        before = e["ts"]
        assert (e["pid"], None) in named and (e["pid"], e.get("tid")) in named
        if e["ph"] == "X":
            assert e["dur"] >= 0 and e["ts"] >= ends[e["pid"], e["tid"]] - 1e-3
            ends[e["pid"], e["tid"]] = e["ts"] + e["dur"]
        if e["ph"] == "C":
            assert all(isinstance(value, int) for value in e["args"].values())


def test_the_file_keeps_the_rules_of_the_format(trace, tmp_path):
    trace.to_perfetto(tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert data["displayTimeUnit"] == "ms"
    check_structure(data["traceEvents"])
    trace.to_perfetto(tmp_path / "run.json.gz")
    assert json.loads(gzip.decompress((tmp_path / "run.json.gz").read_bytes())) == data


def test_every_track_is_there_and_nothing_is_lost(trace):
    events = trace.to_perfetto()["traceEvents"]
    names = {e["args"]["name"]: (e["pid"], e.get("tid")) for e in events if e["ph"] == "M" and "name" in e["args"]}
    assert {"sequences", "engine", "profiler", "sequence 0", "sequence 1", "sequence 2", "steps", "host phases",
            "GPU 0, stream 7"} == set(names)
    on = {name: [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == where] for name, where in names.items()}
    assert len(on["steps"]) == len(trace) and len(on["host phases"]) == 4 * len(trace) and len(on["GPU 0, stream 7"]) == 9
    for i in range(3):
        ran = [e for e in on[f"sequence {i}"] if e["name"] in ("prefill", "decode")]
        assert len(ran) == sum(s["seq_id"] == i for r in trace for s in r.scheduled) and all(e["args"]["reason"] for e in ran)
    for r, counts in zip(trace, (e["args"] for e in events if e["name"] == "cache blocks")):
        assert sum(counts.values()) == len(r.blocks) and counts["shared"] == r.blocks.count("s")


def test_waits_carry_their_reasons(trace):
    events = trace.to_perfetto()["traceEvents"]
    preempted = [e for e in events if e["name"] == "preempted"]
    back = [e for e in events if e["name"] == "preempted, waiting"]
    assert len(preempted) == len(back) == sum(len(r.preempted) for r in trace) > 0
    assert all(" block" in e["args"]["reason"] for e in preempted + back)
    waits = {e["tid"]: e for e in events if e["name"] == "waiting"}
    first = min(r.time for r in trace for s in r.scheduled if s["seq_id"] == 0)
    assert min(waits.values(), key=lambda e: e["tid"])["dur"] == pytest.approx(first * 1e6)
    assert sum(e["name"] == "finished: length" for e in events) == 3


def test_a_window_shows_no_wait_of_those_that_ran_already(trace):
    window = trace[4:]
    running = trace[3].running
    waits = {e["tid"] - 1000 for e in window.to_perfetto()["traceEvents"] if e["name"] == "waiting"}
    assert running and not waits & set(running)
    check_structure(window.to_perfetto()["traceEvents"])


def test_an_empty_trace_is_a_file_too():
    check_structure(Trace().to_perfetto()["traceEvents"])


def test_records_without_phases_are_fine(trace):
    plain = Trace(trace.meta, [StepRecord(**{name: getattr(r, name) for name in StepRecord.__slots__ if name != "phases"})
                               for r in trace])
    assert not any(e["name"] == "launch" for e in plain.to_perfetto()["traceEvents"])
