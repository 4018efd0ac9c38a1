"""What a check answers: passed, or a hint that names the case your code got wrong."""

import contextlib
import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

UNWRITTEN = "still to be written; replace the `raise` by your code and run both cells again"


class Wrong(Exception):
    """Raised inside a check when the reader's code gives a wrong answer; its text is the hint."""


@dataclass(frozen=True)
class Verdict:
    """The answer of a check. `passed`, and in `text` either what was tried or a hint. Shows itself in a notebook."""

    exercise: str
    passed: bool
    text: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'passed' if self.passed else 'not yet'} · {self.exercise}: {self.text}"


@contextlib.contextmanager
def quiet_engine() -> Iterator[None]:
    """Keeps the engine from logging a step that fails: what fails is the reader's code, and the reader is told where."""
    log = logging.getLogger("nanovllm")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def check(exercise: str) -> Callable:
    """Makes a check of a function that calls the reader's code on real cases.

    The decorated function raises `Wrong(hint)` at the first wrong answer and returns a sentence about what was tried.
    Whatever else the reader's code raises becomes a hint too, with the line it came from: a check never raises.
    """

    def decorate(run: Callable) -> Callable:
        @functools.wraps(run)
        def checked(*reader_code) -> Verdict:
            try:
                with quiet_engine():
                    return Verdict(exercise, True, run(*reader_code))
            except Wrong as wrong:
                return Verdict(exercise, False, str(wrong))
            except NotImplementedError:
                return Verdict(exercise, False, UNWRITTEN)
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                return Verdict(exercise, False, f"{type(error).__name__}: {error} (line {at.lineno}: `{at.line}`)")

        return checked

    return decorate


def require(condition: bool, hint: str) -> None:
    """Go on when `condition` holds; end the check with `hint` when it does not."""
    if not condition:
        raise Wrong(hint)
