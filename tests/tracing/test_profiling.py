"""A profiled trace: operators lie inside the steps that ran them."""

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "run.trace"
    with LLM(device="cpu", enforce_eager=True) as llm:
        with llm.trace(path, max_records=2, profile=True) as trace:
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
        steps = llm.engine.num_steps
        with llm.trace() as after:
            seq = llm.engine.add_request([1, 2, 3])
            now = StepRecord.of(llm.engine)
            llm.engine.step()
            llm.engine.abort(seq.seq_id)
    return trace, path, steps, now, after


def test_operators_lie_inside_the_steps_that_ran_them(run):
    _, path, steps, _, _ = run
    trace = Trace.load(path)
    assert len(trace) == steps == 4
    tracks = {o["track"] for o in trace.operations}
    assert tracks and all(track.startswith("CPU operators") for track in tracks)
    multiplications = [o for o in trace.operations if o["name"] in ("aten::linear", "aten::mm", "aten::addmm", "aten::matmul")]
    assert multiplications
    slack = 2e-3  # between reading the two clocks
    launched = [(r.phases["launch"][0], sum(r.phases["launch"])) for r in trace]
    for o in multiplications:
        assert any(start - slack <= o["time"] and o["time"] + o["duration"] <= end + slack for start, end in launched)


def test_phases_follow_one_another_within_the_step(run):
    trace = run[0]
    assert len(trace) == 2  # of the four, the newest
    for r in trace:
        ends = [r.time]
        for time, duration in r.phases.values():
            assert time == pytest.approx(ends[-1], abs=1e-6)
            ends.append(time + duration)
        assert list(r.phases) == ["schedule", "launch", "collect", "update"]
        assert ends[-1] == pytest.approx(r.time + r.duration, abs=1e-6)


def test_the_file_for_perfetto_holds_the_operators(run, tmp_path):
    names = {e["name"] for e in Trace.load(run[1]).to_perfetto()["traceEvents"]}
    assert {"prefill", "decode", "launch", "cache blocks"} <= names and any(name.startswith("aten::") for name in names)


def test_a_snapshot_shows_now_and_an_abort_is_noted(run):
    *_, now, after = run
    assert now.waiting == [1] and not now.scheduled and not now.running and set(now.blocks) <= {"f", "c"}
    assert after[-1].finished == [{"seq_id": 1, "reason": "abort"}]
    assert after.meta["prompts"] == {1: 3} and 0 <= after.meta["arrivals"][1] < after[0].time
