"""Which lines of a function run, and what it was given and gave back, seen while it runs."""

import inspect
import sys
from collections.abc import Callable


def code_of(function: Callable):
    return inspect.unwrap(function).__code__


class LineWatch:
    """Notes which lines of chosen functions run while it is entered, by Python's own tracing.

    lines: {code object: line numbers}. calls: {code object: how often it was called}. last: {code object: (local variables,
    returned value) of the last call}. `code_of` gives a function's code object.

    Owns nothing that outlives it: the trace function that was there before (a debugger's, a coverage tool's) is put back.
    """

    def __init__(self):
        self.watch([])

    def watch(self, functions: list[Callable]) -> "LineWatch":
        """Forget what was seen, and watch these from now on."""
        codes = [code_of(function) for function in functions]
        self.lines: dict = {code: set() for code in codes}
        self.calls: dict = dict.fromkeys(codes, 0)
        self.last: dict = {}
        return self

    def __enter__(self) -> "LineWatch":
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *exc_info) -> None:
        sys.settrace(self._before)

    def _called(self, frame, event, argument):
        if frame.f_code not in self.lines:
            return None
        self.calls[frame.f_code] += 1
        return self._ran

    def _ran(self, frame, event, argument):
        if event == "line":
            self.lines[frame.f_code].add(frame.f_lineno)
        elif event == "return":
            self.last[frame.f_code] = (dict(frame.f_locals), argument)
        return self._ran
