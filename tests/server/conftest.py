"""A real server on a free port, in a thread, around one engine on the offline model."""

import threading
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import httpx
import pytest
from openai import OpenAI

from nanovllm import LLM, AsyncLLM
from nanovllm.server.app import create_app
from nanovllm.server.run import Server, bind

# Each call a connection of its own, and more patience than httpx has by itself: the machine may be busy.
http = SimpleNamespace(**{name: partial(getattr(httpx, name), timeout=60) for name in ("get", "post", "options")})


class Running:
    """A server that runs: where it is, and the engine behind it."""

    def __init__(self, llm: LLM, server: Server, port: int):
        self.llm, self.server, self.port = llm, server, port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, **options) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60} | options)

    def wait_until(self, condition) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "waited 30 s"
            time.sleep(0.005)

    def wait_until_idle(self) -> None:
        """Every request has ended, its blocks are free, and the books balance."""
        blocks = self.llm.engine.block_manager
        self.wait_until(lambda: not self.llm.engine.has_unfinished and blocks.num_free_blocks == blocks.num_blocks)
        self.llm.engine.check_integrity()


@contextmanager
def running_server(llm: LLM, max_queued: int | None = None, shutdown_seconds: float = 5, receive_seconds: float = 60,
                   **options):
    """The tests' own way to have a server: `with running_server(llm) as server`."""
    with bind("127.0.0.1", 0) as listener:
        app = create_app(AsyncLLM(llm, max_queued=max_queued), receive_seconds=receive_seconds, **options)
        server = Server(app, shutdown_seconds, "warning", receive_seconds)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running = Running(llm, server, listener.getsockname()[1])
        try:
            running.wait_until(lambda: server.started)
            yield running
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
    running.wait_until_idle()


def make_llm() -> LLM:
    return LLM(device="cpu", kvcache_block_size=4, num_kvcache_blocks=4000, max_num_seqs=64)


@pytest.fixture(scope="session")
def llm():
    """For tests that bring up a server of their own, or ask the engine without one. An LLM serves one master at a time."""
    with make_llm() as llm:
        yield llm


@pytest.fixture(scope="session")
def shared_server():
    with make_llm() as llm, running_server(llm) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """The shared server, which must be idle and whole again after every test."""
    yield shared_server
    shared_server.wait_until_idle()


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


class Gate:
    """Holds the engine before its next step until it is opened."""

    def __init__(self, llm: LLM, monkeypatch):
        self.reached, self._open, step = threading.Event(), threading.Event(), llm.engine.step

        def gated():
            self.reached.set()
            assert self._open.wait(30)
            return step()

        monkeypatch.setattr(llm.engine, "step", gated)
        self.open = self._open.set


@pytest.fixture
def gate(llm, monkeypatch):
    gate = Gate(llm, monkeypatch)
    yield gate
    gate.open()


class Replay:
    """A sampler that draws given texts: a request gets the one of its seed, any other request what it would get anyway."""

    def __init__(self, llm: LLM):
        self._llm, self._sampler = llm, llm.engine.model_runner.sampler
        self._texts: dict[int, list[int]] = {}

    def __call__(self, logits, batch):
        tokens = self._sampler(logits, batch)
        if batch.seeds is not None:
            for row, (seed, offset) in enumerate(zip(batch.seeds.tolist(), batch.offsets.tolist())):
                if offset < len(self._texts.get(seed, ())):
                    tokens[row] = self._texts[seed][offset]
        return tokens

    def seed(self, text: str, ends: bool = True) -> int:
        """The seed of requests that are to get this text. ends: whether it ends there, or the model goes on with it."""
        tokenizer, seed = self._llm.tokenizer, 10_000 + 100 * len(self._texts)
        self._texts[seed] = [*tokenizer.encode(text), *[tokenizer.eos_token_id] * ends]
        return seed


@pytest.fixture
def replay(shared_server, monkeypatch):
    replay = Replay(shared_server.llm)
    monkeypatch.setattr(shared_server.llm.engine.model_runner, "sampler", replay)
    return replay
