"""What a reader without a GPU is told of runs on one: the figures of a file with their origin, or that there are none."""

import json

import pytest

from chapters.exercises.recorded import recorded, recorded_table


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


def test_a_table_has_units_and_its_origin_and_takes_the_newest_run(tmp_path):
    for date, ms in (("2026-11-24", 9.0), ("2026-11-26", 0.00069149)):
        rows = [{"sequences": 1024, "s": ms, "what": "decode"}, {"sequences": 1, "s": ms, "what": "prefill"}]
        result = {"device": "Some GPU", "date": date, "commit": "abc1234", "step": rows}
        (tmp_path / f"{date}.json").write_text(json.dumps(result), encoding="utf-8")
    columns = {"what": "step", "sequences": "sequences", "s": ("time (ms)", 1000)}
    table = recorded_table("step", columns, folder=tmp_path)
    assert table._repr_markdown_() == ("| step | sequences | time (ms) |\n| --- | ---: | ---: |\n| decode | 1,024 | 0.691 |\n"
                                       "| prefill | 1 | 0.691 |\n\n*Recorded on Some GPU, 2026-11-26, commit abc1234.*")
    assert "1,024" in repr(table) and repr(table).endswith("commit abc1234.")
    one = recorded_table("step", columns, where=lambda row: row["what"] == "prefill", folder=tmp_path)
    assert len(one.rows) == 1
    with pytest.raises(LookupError, match="no row"):
        recorded_table("step", columns, where=lambda row: False, folder=tmp_path)
    assert "No recorded GPU run of 'other' is here" in repr(recorded_table("other", columns, folder=tmp_path))
