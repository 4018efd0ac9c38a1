"""The engine for notebooks and services: any number of asyncio tasks share it, and the event loop never waits for it."""

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

from nanovllm.errors import QueueFull, RequestFailed
from nanovllm.llm import LLM, Messages, Prompt
from nanovllm.outputs import RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.serving.engine_thread import EngineThread, RequestUpdate
from nanovllm.serving.request import Delta, Request
from nanovllm.utils.checks import check

__all__ = ["AsyncLLM", "AsyncRequest", "QueueFull", "RequestFailed"]


class AsyncLLM:
    """An `LLM` to `await`: requests of all tasks run together in one engine, stepped by a thread of its own.

    Owns that thread, and the LLM unless it was handed one. The LLM may be used meanwhile, from any thread: see there.
    A task that is cancelled, or leaves its stream early, aborts its request. An idle one uses no processor time.
    `await close()` (or leaving an `async with` block, or the last reference) ends the thread.

    model: as in `LLM`, or an LLM that is already there. max_queued: most samples that may wait for their first step.
    on_output: called in the event loop with the output of every request that ends, aborted and failed ones too.

    Raises InvalidArgument for a setting that cannot be served.
    """

    def __init__(self, model: str | Path | LLM | None = None, *, max_queued: int | None = None,
                 on_output: Callable[[RequestOutput], None] | None = None, **settings: Any):
        check(max_queued is None or (isinstance(max_queued, int) and max_queued >= 1), "max_queued", max_queued,
              "None or a whole number, 1 or more", "a request waits at least until the next step")
        check(not (isinstance(model, LLM) and settings), "settings", settings, "empty for an LLM that is already there",
              "pass them to LLM(...)")
        self._owns_llm = not isinstance(model, LLM)
        self.llm = model if isinstance(model, LLM) else LLM(model, **settings)
        self.max_queued, self.on_output = max_queued, on_output
        self._thread: EngineThread[AsyncRequest] = EngineThread(self.llm.engine, _deliver, max_queued)
        weakref.finalize(self, self._thread.stop)

    def __repr__(self) -> str:
        return f"Async{self.llm!r}" if self.is_open else f"AsyncLLM({self.llm.config.model.name}, closed)"

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive

    @property
    def num_queued(self) -> int:
        """Samples that wait for their first step."""
        return self._thread.num_queued

    async def close(self) -> None:
        """End the thread; requests that still run fail with RequestFailed. May be called any number of times."""
        await asyncio.to_thread(self._thread.stop)
        if self._owns_llm:
            self.llm.close()

    async def generate(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """Serve one prompt, a text or token ids; for several, `asyncio.gather` several calls.

        Raises InvalidRequest when it cannot be served, QueueFull when too many wait, RequestFailed when it makes a
        step fail or its scores are not finite (NotFinite); other requests are not touched by that.
        """
        async with await self.submit(prompt, sampling_params, wants_deltas=False) as request:
            return await request.output()

    async def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> AsyncIterator[Delta]:
        """Yield what each sample gains as it is generated: `delta.text`, `delta.token_ids`, ... Raises as `generate` does.

        The text of a delta never splits a character, nor holds the beginning of a stop string.
        """
        async with await self.submit(prompt, sampling_params) as request:
            async for delta in request:
                yield delta

    async def chat(self, messages: Messages, sampling_params: SamplingParams | None = None, **template_arguments: Any
                   ) -> RequestOutput:
        """Continue one conversation in the model's own chat format; see `LLM.chat`."""
        return await self.generate(self.llm.render_chat(messages, **template_arguments), sampling_params)

    def check_room(self, num_samples: int) -> None:
        """Raise QueueFull unless so many samples may be queued now; RequestFailed when nothing is served any more."""
        self._thread.check_room(num_samples)

    async def submit(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0,
                     wants_deltas: bool = True) -> "AsyncRequest":
        """Queue one prompt and return at once, with a handle on the request. Raises as `generate` does.

        priority: less is served sooner; see `Scheduler`.
        """
        self.check_room(1)  # before the work of encoding
        params = sampling_params or self.llm.get_default_sampling_params()
        request = await asyncio.to_thread(Request, self.llm.engine, self.llm.tokenizer, prompt, params, priority,
                                          self.llm.grammars, cuts_max_tokens=sampling_params is None)
        handle = AsyncRequest(self, request, wants_deltas)
        self._thread.submit(handle)
        return handle


class AsyncRequest:
    """A request that `AsyncLLM.submit` queued.

    Iterate it, once, for its deltas; await `output()` for the whole. Leaving its `async with` block aborts what still
    runs. It belongs to the event loop in which it was made.
    """

    def __init__(self, llm: AsyncLLM, request: Request, wants_deltas: bool):
        self.request, self.wants_deltas = request, wants_deltas
        self.loop = asyncio.get_running_loop()
        self._llm = llm
        self._deltas: deque[Delta] = deque()
        self._updated, self._ended = asyncio.Event(), asyncio.Event()
        self._output: RequestOutput | None = None
        self._error: RequestFailed | None = None

    async def __aenter__(self) -> "AsyncRequest":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.abort()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while self._deltas or not self._ended.is_set():
            if self._deltas:
                yield self._deltas.popleft()
            else:
                self._updated.clear()
                await self._updated.wait()
        if self._error:
            raise self._error

    async def output(self) -> RequestOutput:
        """Wait for the end. Raises RequestFailed when it ends badly."""
        await self._ended.wait()
        if self._error:
            raise self._error
        return cast(RequestOutput, self._output)  # set together with `_ended`

    def abort(self) -> None:
        """End it now, if it still runs: its blocks are free before the next step."""
        if not self._ended.is_set():
            self._llm._thread.abort(self)

    def receive(self, update: "Update") -> None:
        """Take in what the engine's thread reports. Runs in the event loop."""
        self._deltas += update.deltas
        self._output, self._error = update.output, update.error
        if update.output or update.error:
            self._ended.set()
        self._updated.set()
        if update.output and self._llm.on_output:
            self.loop.call_soon(self._llm.on_output, update.output)


Update = RequestUpdate[AsyncRequest]


def _deliver(updates: list[Update]) -> None:
    """Hand a step's updates to the event loops of the requests: one wake-up per loop, however many requests it has."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Update]] = {}
    for update in updates:
        by_loop.setdefault(update.handle.loop, []).append(update)
    for loop, items in by_loop.items():
        try:
            loop.call_soon_threadsafe(_receive_all, items)
        except RuntimeError:  # the loop is closed, so nothing waits for them any more
            for update in items:
                update.handle.abort()


def _receive_all(updates: list[Update]) -> None:
    for update in updates:
        update.handle.receive(update)
