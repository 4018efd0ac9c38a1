"""Connections that do not hold their end up: those that send nothing, or so slowly that it never ends, or never read."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, and a deadline for the client's side of it.

    A connection is closed when it takes longer than `receive_seconds` to send a request's head, or reads nothing of an
    answer for that long. How long the answer itself takes is nobody's business here, nor is the body: see `Guard`.
    """

    receive_seconds: float = 60

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_deadline: asyncio.TimerHandle | None = None
        self._read_deadline: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._head_deadline = self._close_later(transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_deadline = _cancel(self._head_deadline)
        elif self._head_deadline is None:  # the next request of this connection has begun
            self._head_deadline = self._close_later(self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_deadline = self._close_later(self.transport.abort)  # what is not read cannot be flushed either

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_deadline = _cancel(self._read_deadline)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_deadline = _cancel(self._head_deadline)
        self._read_deadline = _cancel(self._read_deadline)
        super().connection_lost(exc)

    def _close_later(self, close: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(self.receive_seconds, close)


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What is left of a timer: nothing."""
    if timer is not None:
        timer.cancel()
    return None
