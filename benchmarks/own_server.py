"""`python -m nanovllm serve` in a process of its own, for a benchmark that was given no server."""

import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from nanovllm.utils.checks import check

START_S, END_S = 600.0, 60.0


@contextmanager
def own_server(*arguments: str, start_seconds: float = START_S) -> Iterator[str]:
    """Start a server on a free port of this machine; yields its address, with /v1, and ends it afterwards.

    arguments: what follows `python -m nanovllm serve`. Raises ValueError, with what it said, when it does not start.
    """
    command = [sys.executable, "-m", "nanovllm", "serve", *arguments, "--port", "0", "--log-level", "warning"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                              start_new_session=True)  # Ctrl-C ends the benchmark, which then ends the server
    said: deque[str] = deque(maxlen=12)
    address: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert server.stdout is not None  # for the type checker: it is a pipe
        for line in server.stdout:
            said.append(line.rstrip())
            if line.startswith("Listening on "):
                address.put(line.split()[-1])
        address.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        try:
            url = address.get(timeout=start_seconds)
        except queue.Empty:
            url = None
        check(url is not None, "server", " ".join(command[3:]), f"started within {start_seconds:g} s, and it said: "
              + " | ".join(said), "try the command by itself")
        yield url or ""
    finally:
        server.terminate()
        try:
            server.wait(END_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        reader.join(END_S)


def served_model(models: object) -> str:
    """The first model's name in what /v1/models answered. Raises ValueError for an answer of another form."""
    try:
        name = models["data"][0]["id"]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        name = None
    check(isinstance(name, str), "/v1/models", models, "an object with data[0].id", "name the model with --model")
    return str(name)
