"""A check always answers, and its answer names what went wrong."""

import importlib
import inspect
import re

import pytest

from chapters.exercises.verdict import check, require
from tests.exercises.test_exercises import CHECKS, ROOT, checks_of, reader_code_of


@check("halves")
def check_half(half):
    require(half(4) == 2, "4: half of it is 2.")
    return "one number"


def test_a_right_answer_says_what_was_tried():
    verdict = check_half(lambda n: n // 2)
    assert verdict and repr(verdict) == "passed · halves: one number"


def test_a_wrong_answer_becomes_its_hint():
    verdict = check_half(lambda n: n)
    assert not verdict and repr(verdict) == "not yet · halves: 4: half of it is 2."


def test_an_unwritten_exercise_and_a_crash_are_answers_too():
    def unwritten(n):
        raise NotImplementedError

    def crashes(n):
        return n / 0

    assert "still to be written" in check_half(unwritten).text
    assert "ZeroDivisionError" in check_half(crashes).text and "return n / 0" in check_half(crashes).text


CHECK_PAIR = """
from chapters.exercises.verdict import check, require

@check("pairs")
def check_pair(pair):
    \'\'\'pair(n) -> (n, n + 1).\'\'\'
    first, second = pair(3)
    require(second == 4, f"3: the second should be 4, not {second}.")
    return "one pair"
"""
room: dict = {}
exec(compile(CHECK_PAIR, str(ROOT / "chapters" / "exercises" / "pairs.py"), "exec"), room)  # a file of the checks' folder


@pytest.mark.parametrize(("answer", "said"), [
    (lambda n: None, "returned None"), (lambda n: n, "returned 3 (an int)"), (lambda n: [1, 2, 3], "[1, 2, 3] (a list of 3)")])
def test_what_cannot_be_used_is_named_with_what_is_wanted(answer, said):
    text = room["check_pair"](answer).text
    assert said in text and "Wanted is pair(n) -> (n, n + 1)." in text and "line" not in text, text
    assert ("is a `return` missing" in text.lower()) == (said == "returned None")


def test_a_crash_below_the_readers_code_is_told_by_the_readers_line():
    def asks_a_library(n):
        return inspect.signature(n)

    text = check_half(asks_a_library).text
    assert text.startswith("TypeError: 4 is not a callable object") and "`return inspect.signature(n)`" in text


def forgetful(solution, check):
    """Answers that are the solution but for a forgotten `return`: one for each function or method that the task names."""
    if inspect.isfunction(solution):
        return [_silent(solution.__name__)]
    named = [name for name, method in vars(solution).items() if (name == "__call__" or f"{name}(" in inspect.getdoc(check))
             and re.search(r"\breturn .", inspect.getsource(method))]
    return [type(solution.__name__, (solution,), {name: _silent(name)}) for name in named]


def _silent(name):
    room = {}
    exec(f"def {name}(*args, **kwargs):\n    args", room)
    return room[name]


WORKS_BY_WRITING = {"check_fill", "check_load", "check_paged_decode_kernel"}  # into what they are given


@pytest.mark.parametrize(("name", "check"), [pair for pair in CHECKS if pair[1] not in WORKS_BY_WRITING])
def test_a_forgotten_return_is_called_that(name, check):
    function = checks_of(name)[check]
    solution = getattr(importlib.import_module(f"chapters.exercises.solutions.{name}"), reader_code_of(function))
    for answer in forgetful(solution, function):
        verdict = function(answer)
        assert not verdict and ("return" in verdict.text or "(line " in verdict.text), verdict
