"""What the reader's code returned, for the hint of a check that could not go on with it."""

import contextlib
import inspect
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / folder}/" for folder in ("chapters/exercises", "nanovllm", "visualizations"))
SOLUTIONS = f"{ROOT / 'chapters/exercises/solutions'}/"  # they stand where the reader's code would
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
SHOWN = 60  # characters of a value
ENOUGH = 1000  # returns of one function that are kept
UNWATCHED = ("<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
GENERATOR = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def is_readers(filename: str) -> bool:
    """Was this file (of a traceback, or of a code object) written by the reader: a cell, or a file of theirs?"""
    if filename.startswith(SOLUTIONS):
        return True
    return not filename.startswith(("<frozen", *OURS, *LIBRARIES))


def returns_of(run: Callable[[], Any]) -> dict[str, list[Any]]:
    """Run once more, watching; {name of a function or method of the reader's: what it returned, in order}.

    Whatever the run raises is known already. Names come in the order of their last return. Constructors, which return
    nothing, and generators are left out.
    """
    returns: dict[str, list[Any]] = {}

    def watch(frame: FrameType, event: str, value: Any) -> None:
        code = frame.f_code
        if event != "return" or code.co_flags & GENERATOR or not is_readers(code.co_filename):
            return
        name = code.co_qualname.split("<locals>.")[-1]
        if code.co_name in UNWATCHED or (code.co_name.startswith("__") and code.co_name != "__call__"):
            return
        values = returns.pop(name, [])  # taken out and put in again: names stand in the order of their last return
        if len(values) < ENOUGH:
            values.append(value)
        returns[name] = values

    before = sys.getprofile()
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        with contextlib.suppress(Exception):
            run()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return returns


def described(value: Any) -> str:
    """A value in a few words: its repr, and for what has one, its kind and shape."""
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)}, {getattr(value, 'dtype', '')}".removesuffix(", ")
    text = repr(value)
    text = text if len(text) <= SHOWN else text[:SHOWN - 1] + "…"
    length = f" of {len(value)}" if isinstance(value, (list, tuple, dict, set)) else ""
    kind = type(value).__name__
    return f"{text} ({'an' if kind[0] in 'aeiou' else 'a'} {kind}{length})"
