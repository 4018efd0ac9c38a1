"""How a test gets its hands on a worker: code of its own, run in there, and what the caller then hears."""

import textwrap
import time

import pytest


class Exec:
    """Arrives in a worker as the running of `code` there."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code, {})


def in_worker(llm, rank, code):
    """Run code in one worker before its next step."""
    condition = f"import sys, json\nif json.loads(sys.argv[1])['rank'] == {rank}:\n"
    llm.engine.model_runner.workers.send("note", 0, Exec(condition + textwrap.indent(code, "    ")))


def until_failure(stream, strike, match=None):
    """Call `strike` and go on with the stream; returns (the error that ends it, seconds from the strike to it)."""
    strike()
    struck = time.monotonic()
    with pytest.raises(RuntimeError, match=match) as caught:
        for _ in stream:
            pass
    return caught.value, time.monotonic() - struck
