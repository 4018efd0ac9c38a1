"""Which lines of a function run, and what it was given and gave back, seen while it runs."""

import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

TraceFunction = Callable[[FrameType, str, Any], Any]


def code_of(function: Callable[..., Any]) -> CodeType:
    code: CodeType = inspect.unwrap(function).__code__
    return code


class LineWatch:
    """Notes which lines of chosen functions run while it is entered, by Python's own tracing.

    lines: {code object: line numbers}. calls: {code object: how often it was called}. last: {code object: (local variables,
    returned value) of the last call}. `code_of` gives a function's code object.

    Owns nothing that outlives it: the trace function that was there before (a debugger's, a coverage tool's) is put back.
    """

    def __init__(self) -> None:
        self.watch([])

    def watch(self, functions: list[Callable[..., Any]]) -> "LineWatch":
        """Forget what was seen, and watch these from now on."""
        codes = [code_of(function) for function in functions]
        self.lines: dict[CodeType, set[int]] = {code: set() for code in codes}
        self.calls: dict[CodeType, int] = dict.fromkeys(codes, 0)
        self.last: dict[CodeType, tuple[dict[str, Any], Any]] = {}
        return self

    def __enter__(self) -> "LineWatch":
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, argument: Any) -> TraceFunction | None:
        if frame.f_code not in self.lines:
            return None
        self.calls[frame.f_code] += 1
        return self._ran

    def _ran(self, frame: FrameType, event: str, argument: Any) -> TraceFunction | None:
        if event == "line":
            self.lines[frame.f_code].add(frame.f_lineno)
        elif event == "return":
            self.last[frame.f_code] = (dict(frame.f_locals), argument)
        return self._ran
