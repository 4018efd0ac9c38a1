"""The package's own server on a free port of this machine, and a client that reads its events, for chapter 12."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nanovllm import LLM, AsyncLLM

PATIENCE = 30  # seconds for the server to start and to end


@contextmanager
def serving(llm: LLM) -> Iterator[int]:
    """The OpenAI server around an engine that is already there; gives its port. Afterwards the engine is as before.

    Raises RuntimeError when it does not start, ModuleNotFoundError without FastAPI and uvicorn.
    """
    from nanovllm.server.app import create_app
    from nanovllm.server.run import Server, bind

    with bind("127.0.0.1", 0) as listener:
        server = Server(create_app(AsyncLLM(llm)), shutdown_seconds=5, log_level="warning")
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started:
            if time.monotonic() > end or not thread.is_alive():
                raise RuntimeError(f"the server did not start within {PATIENCE} s")
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def sse(port: int, body: dict) -> Iterator[str]:
    """The events of one streamed chat, line by line. Leaving the loop closes the connection, as a closed browser does.

    Raises RuntimeError with the server's own words when it refuses the request.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read().decode()}")
        for line in answer:
            if line.strip():
                yield line.decode().rstrip()
    finally:
        connection.close()
