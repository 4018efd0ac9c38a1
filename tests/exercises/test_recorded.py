"""What a reader without a GPU is told of runs on one: the figures of a file with their origin, or that there are none."""

import json

from chapters.exercises.recorded import recorded


def test_rows_come_with_machine_date_and_commit(tmp_path):
    rows = [{"sequences": 4, "ms": 0.123456, "x": 1}]
    result = {"device": "Some GPU", "date": "2026-11-24", "commit": "abc1234", "step": rows}
    (tmp_path / "gpu.json").write_text(json.dumps(result), encoding="utf-8")
    slow = {"cpu": "Some CPU", "step": [{"sequences": 4, "ms": 99.0}]}
    (tmp_path / "cpu.json").write_text(json.dumps(slow), encoding="utf-8")
    told = recorded("step", ("ms", "sequences"), tmp_path)
    assert told == "recorded on Some GPU, 2026-11-24, commit abc1234:\n  ms 0.1235, sequences 4"
    assert "x 1" in recorded("step", folder=tmp_path)


def test_without_a_run_it_says_so(tmp_path):
    assert recorded("step", folder=tmp_path) == "no recorded GPU run of 'step' is in the repository yet"
