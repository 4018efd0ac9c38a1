"""Every exercise of every chapter: the solution passes, plausible wrong answers fail, each with a hint of its own."""

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "chapters" / "exercises").glob("ch*.py"))


def checks_of(name: str) -> dict:
    module = importlib.import_module(f"chapters.exercises.{name}")
    return {check: f for check, f in vars(module).items() if check.startswith("check_") and hasattr(f, "__wrapped__")}


def reader_code_of(check) -> str:
    """The name of the function or class that a check is handed, which is also its name in the chapter and its solution."""
    return next(iter(inspect.signature(check).parameters))


CHECKS = [(name, check) for name in MODULES for check in checks_of(name)]


def test_there_are_exercises():
    assert CHECKS


@pytest.mark.parametrize("name, check", CHECKS)
def test_the_solution_passes(name, check):
    function = checks_of(name)[check]
    solutions = importlib.import_module(f"chapters.exercises.solutions.{name}")
    verdict = function(getattr(solutions, reader_code_of(function)))
    assert verdict, verdict


@pytest.mark.parametrize("name, check", CHECKS)
def test_wrong_answers_fail_with_different_hints(name, check):
    wrong = importlib.import_module(f"tests.exercises.wrong_{name}").WRONG
    verdicts = [checks_of(name)[check](answer) for answer in wrong[check]]
    assert len(verdicts) >= 1 and not any(verdicts), verdicts
    hints = [v.text for v in verdicts]
    assert len(set(hints)) == len(hints), hints


@pytest.mark.parametrize("name", MODULES)
def test_a_chapter_has_three_exercises_and_three_wrong_answers(name):
    wrong = importlib.import_module(f"tests.exercises.wrong_{name}").WRONG
    assert len(checks_of(name)) == 3 and set(wrong) == set(checks_of(name))
    assert sum(map(len, wrong.values())) >= 3


@pytest.mark.parametrize("name", MODULES)
def test_the_untouched_exercises_fail_in_the_committed_chapter(name):
    [chapter] = (ROOT / "chapters").glob(f"{name.removeprefix('ch')}_*.ipynb")
    cells = [c for c in json.loads(chapter.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    for check in checks_of(name):
        [cell] = [c for c in cells if re.search(rf"\b{check}\(", "".join(c["source"]))]
        shown = "".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in cell["outputs"])
        assert shown.startswith("not yet · ") and "still to be written" in shown, (check, shown)
