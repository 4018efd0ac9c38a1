"""What a check answers: passed, or a hint that names the case your code got wrong."""

import contextlib
import functools
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from IPython import get_ipython

from .progress import Progress
from .returned import described, is_readers, returns_of

UNWRITTEN = "still to be written; replace the `raise` by your code and run both cells again"


SECOND_LOOK_SECONDS = 2.0  # a check that took longer is not run again to find out what its reader's code returned


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
    Whatever else the reader's code raises becomes a hint too, with the reader's line it came from: a check never raises.
    Where the check itself stumbles over what the reader's code returned (a forgotten `return`, a number where a list is
    wanted), the hint says what was returned, and what the check's docstring promises the reader it should be.
    """

    def decorate(run: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(run)
        def checked(*reader_code: Any) -> Verdict:
            start = time.monotonic()
            try:
                with quiet_engine():
                    verdict = Verdict(exercise, True, run(*reader_code))
                _note_solved(run)
                return verdict
            except Wrong as wrong:
                hint = str(wrong)
                if time.monotonic() - start < SECOND_LOOK_SECONDS:
                    hint += _forgotten(run, reader_code, hint)
                return Verdict(exercise, False, hint)
            except NotImplementedError:
                return Verdict(exercise, False, UNWRITTEN)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                mine = [frame for frame in frames if is_readers(frame.filename)]
                if mine:
                    return Verdict(exercise, False, f"{_said(error)} (line {mine[-1].lineno}: `{mine[-1].line}`)")
                return Verdict(exercise, False, _unusable(run, reader_code, error))

        checked.exercise = exercise  # type: ignore[attr-defined]
        return checked

    return decorate


def _note_solved(run: Callable[..., str]) -> None:
    """In a notebook, note what was solved, for `python -m chapters`. A file that cannot be written is no reason to fail."""
    if get_ipython() is not None:
        with contextlib.suppress(OSError):
            Progress().note(run.__module__.rpartition(".")[2], run.__name__)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _unusable(run: Callable[..., str], reader_code: tuple[Any, ...], error: Exception) -> str:
    """The hint where no line of the reader's raised: the check, or the engine, could not use what it was given."""
    wanted = " ".join((run.__doc__ or "").split("\n\n")[0].split())
    returns = _returns(run, reader_code)
    empty = [name for name, values in returns.items() if values[-1] is None]
    if not returns:
        return f"{_said(error)}. Wanted is {wanted}"
    name = empty[-1] if empty else list(returns)[-1]
    missing = " Is a `return` missing?" if empty else ""
    got = described(returns[name][-1])
    return f"`{name}` returned {got}, and the check cannot go on with that ({_said(error)}).{missing} Wanted is {wanted}"


def _forgotten(run: Callable[..., str], reader_code: tuple[Any, ...], hint: str) -> str:
    """What to add to a hint: whether code that should return something never did.

    It should where the hint speaks of None, or where the check's docstring has an arrow: `share_out(...) -> tokens`.
    """
    if re.search(r"\breturn\b", hint):
        return ""
    for name, values in _returns(run, reader_code).items():
        arrow = re.search(rf"\b{re.escape(name.split('.')[-1])}\([^)]*\)[^.]*->", run.__doc__ or "")
        if (arrow or re.search(r"\bNone\b", hint)) and all(value is None for value in values):
            return f" `{name}` returned None every time: is a `return` missing?"
    return ""


def _returns(run: Callable[..., str], reader_code: tuple[Any, ...]) -> dict[str, list[Any]]:
    with quiet_engine():
        return returns_of(lambda: run(*reader_code))


def require(condition: bool, hint: str) -> None:
    """Go on when `condition` holds; end the check with `hint` when it does not."""
    if not condition:
        raise Wrong(hint)
