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


def test_there_are_ten():
    assert len(EXHIBITS) == 10


@pytest.mark.parametrize(("code", "call"), EXHIBITS, ids=[call.split("_", 1)[1].split("(")[0] for _, call in EXHIBITS])
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
