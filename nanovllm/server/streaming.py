"""Answers that take a while, and clients that do not wait for them."""

import asyncio
from collections.abc import Awaitable
from typing import Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanovllm.async_llm import AsyncRequest
from nanovllm.errors import RequestFailed
from nanovllm.outputs import RequestOutput
from nanovllm.server.replies import Chunk, LogprobEntry
from nanovllm.serving.request import Delta

T = TypeVar("T")


class ClientDisconnected(Exception):
    """The client closed its connection before it had its answer."""


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`; when the client disconnects first, cancel it and raise ClientDisconnected.

    The body must have been read already.
    """
    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    tasks: tuple[asyncio.Future[T], asyncio.Future[None]] = working, waiting
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class StreamReply(Protocol):
    """What makes events of requests that run: see `Reply`. end_of_stream: what is written after the last event."""

    end_of_stream: str | None

    def opening(self, prompt: int, num_prompt_tokens: int) -> list[Chunk]: ...

    def beginning(self, prompt: int, prompt_token_ids: list[int], text: str | None,
                  prompt_logprobs: list[LogprobEntry | None] | None) -> list[Chunk]: ...

    def chunks(self, prompt: int, delta: Delta) -> list[Chunk]: ...

    def closing(self, outputs: list[RequestOutput]) -> list[Chunk]: ...

    def failing(self, message: str) -> list[Chunk]: ...

    def encoded(self, chunk: Chunk) -> str: ...


class EventStream(Response):
    """Requests that run, as server-sent events: a chunk for each delta, whichever request it comes from.

    Owns the requests: whatever ends the response, a client that disconnects above all, aborts those that still run.
    """

    media_type = "text/event-stream"

    def __init__(self, requests: list[AsyncRequest], reply: StreamReply, prompts: list[str | None]):
        """prompts: their texts, one for each request."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._requests, self._reply, self._prompts = requests, reply, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_disconnected(receive, self._write(send))
            await send({"type": "http.response.body", "body": b""})
        except ClientDisconnected:
            pass
        finally:
            for request in self._requests:
                request.abort()

    async def _write(self, send: Send) -> None:
        async def write(chunk: Chunk) -> None:
            await send({"type": "http.response.body", "body": self._reply.encoded(chunk).encode(), "more_body": True})

        async def follow(prompt: int, request: AsyncRequest) -> None:
            own = request.request
            for chunk in self._reply.opening(prompt, len(own.prompt_token_ids)):
                await write(chunk)
            chunks: list[Chunk] = []
            has_begun = False
            async for delta in request:
                if not has_begun:
                    has_begun = True
                    chunks = self._reply.beginning(prompt, own.prompt_token_ids, self._prompts[prompt], own.prompt_logprobs())
                for chunk in chunks + self._reply.chunks(prompt, delta):
                    await write(chunk)
                chunks = []

        results = await asyncio.gather(*(follow(i, request) for i, request in enumerate(self._requests)),
                                       return_exceptions=True)
        error = next((result for result in results if result is not None), None)
        if isinstance(error, RequestFailed):  # the status is out already; an error event is what clients look for
            for chunk in self._reply.failing(str(error)):
                await write(chunk)
        elif error is not None:
            raise error
        else:
            for chunk in self._reply.closing([await request.output() for request in self._requests]):
                await write(chunk)
        if self._reply.end_of_stream is not None:
            await send({"type": "http.response.body", "body": self._reply.end_of_stream.encode(), "more_body": True})
