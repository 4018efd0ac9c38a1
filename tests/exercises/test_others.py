"""Other engines' figures beside ours: chapters 12 and 14 show what the results files hold, and nothing that takes time as 0."""

import json

import pytest

from benchmarks.machine import RESULTS
from benchmarks.others import OTHERS
from chapters.exercises import others

NEWEST = json.loads((RESULTS / "nvidia-h200.json").read_text(encoding="utf-8"))


def test_the_parts_of_a_step_are_the_whole_step_and_none_of_them_is_nothing():
    parts, done = others.parts_of_a_step()
    assert list(parts) == ["this engine", "nano-vllm", "vLLM"] and min(ms for row in parts.values() for ms in row.values()) > 0
    assert sum(parts["nano-vllm"].values()) == pytest.approx(OTHERS["step of 256"]["nano-vllm"]["step ms"])
    assert sum(parts["vLLM"].values()) == pytest.approx(OTHERS["step of 256"]["vLLM"]["gpu ms"])
    [row] = [row for row in NEWEST["decode step"] if row["sequences"] == 256]
    assert parts["this engine"]["norms, RoPE"] == row["norms, RoPE, gate, store ms"]
    # ours overlap: the sum is all kernels and the gaps, and the step was done before
    assert sum(parts["this engine"].values()) == pytest.approx(
        row["busy ms"] + row["idle between kernels ms"] + row["exposed ms"])
    assert done == {"this engine": pytest.approx(row["gpu ms"] + row["exposed ms"])}
    assert done["this engine"] < sum(parts["this engine"].values())


def test_what_was_measured_again_has_our_newest_recording_beside_it():
    rows, newest = others.measured_again()
    assert newest == f"{NEWEST['date']}, {NEWEST['commit']}" and len(rows) == len(OTHERS["measured again"]["works"])
    assert all(len(row) == 4 + len(OTHERS["engines"]) and ", s" not in row[0] for row in rows)
    found = {(row[0], row[1]): row[3] for row in rows}
    assert found["8 prompts of 16k tokens", "prompt tok/s"] == NEWEST["long"]["prompt tok/s"]
    shape = json.loads((RESULTS / "shapes" / "nvidia-h200-8b.json").read_text(encoding="utf-8"))
    assert found["8B's shape, one request", "ms/token"] == shape["one"]["ms/token"]
    starts = {row["start"]: row["s"] for row in NEWEST["start"]}
    assert found["start with a tokenizer in the folder, cold", "s"] == starts["cold, with a tokenizer"]
    assert found["start with a tokenizer in the folder, warm", "s"] == starts["warm, with a tokenizer"]


def test_without_a_newer_recording_the_column_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(others, "RESULTS", tmp_path)
    rows, newest = others.measured_again()
    assert newest == "not recorded" and all(row[3] is None for row in rows)
