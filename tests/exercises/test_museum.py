"""Appendix A: each exhibit, as committed, fails its own test with a hint, and its repair passes."""

import inspect
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUSEUM = json.loads((ROOT / "chapters" / "A_bug_museum.ipynb").read_text(encoding="utf-8"))
CELLS = {c["id"]: "".join(c["source"]) for c in MUSEUM["cells"]
         if c["cell_type"] == "code"}  # fmt: skip
EXHIBITS = [(CELLS[f"b{number}"], CELLS[name]) for name in CELLS if name[0] == "c" and (number := name[1:])]  # b01 before c01


@pytest.fixture(scope="module")
def museum():
    """The modules as a chapter imports them, from its own folder."""
    sys.path.insert(0, os.fspath(ROOT / "chapters"))
    try:
        from exercises import museum
        from exercises.solutions import museum as solutions
    finally:
        sys.path.pop(0)
    return museum, solutions


INNOCENT = "museum.check_needs_block(needs_block)"
BUGS = [(code, call) for code, call in EXHIBITS if call != INNOCENT]


def test_there_are_ten_and_one_that_is_none():
    assert len(BUGS) == 10 and len(EXHIBITS) == 11


def test_the_exhibit_that_is_no_bug_passes_as_it_hangs_and_its_popular_repair_fails(museum):
    checks, _ = museum
    [(code, _)] = [exhibit for exhibit in EXHIBITS if exhibit[1] == INNOCENT]
    room = {}
    exec(code, room)
    assert checks.check_needs_block(room["needs_block"])
    for repaired, said in ((lambda n, size: n % size == 0, "stays empty"), (lambda n, size: False, "begins a new block")):
        verdict = checks.check_needs_block(repaired)
        assert not verdict and said in verdict.text, verdict


def test_an_engine_that_nobody_closes_at_exit_is_no_repair(museum):
    checks, _ = museum

    class DropsAtexit:
        def __init__(self, weights):
            self.weights = weights

        def close(self):
            self.weights = None

    assert "Python quits" in checks.check_engine(DropsAtexit).text

    class KeepsNothing:
        def __init__(self, weights):
            pass

        def close(self):
            pass

    assert "has its weights" in checks.check_engine(KeepsNothing).text


@pytest.mark.parametrize(("code", "call"), BUGS, ids=[call.split("_", 1)[1].split("(")[0] for _, call in BUGS])
def test_the_exhibit_fails_and_its_repair_passes(museum, code, call):
    checks, solutions = museum
    room = {}
    sys.path.insert(0, os.fspath(ROOT / "chapters"))
    try:
        exec(CELLS["imports"] + "\n\n" + code, room)
    finally:
        sys.path.pop(0)
    verdict = eval(call, room)
    assert not verdict and "Error" not in verdict.text.split(":")[0], verdict
    check = getattr(checks, call.removeprefix("museum.").split("(")[0])
    assert check(getattr(solutions, next(iter(inspect.signature(check).parameters))))


@pytest.mark.parametrize("number", [call[1:] for call in CELLS if call[0] == "c"])
def test_the_symptom_is_drawn_before_and_after_the_repair(museum, number):
    checks, solutions = museum
    room = {}
    sys.path.insert(0, os.fspath(ROOT / "chapters"))
    try:
        exec(CELLS["imports"] + "\n\n" + CELLS[f"b{number}"], room)
    finally:
        sys.path.pop(0)
    drawn = [source for name, source in CELLS.items() if name[0] == "v" and name[1:3] == number]
    assert drawn
    repaired = next(iter(inspect.signature(getattr(checks, CELLS[f"c{number}"].split(".")[1].split("(")[0])).parameters))
    for source in drawn:
        exec(source, room)
    room[repaired] = getattr(solutions, repaired)
    for source in drawn:
        exec(source, room)
