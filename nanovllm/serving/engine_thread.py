"""The engine's own thread: it steps while there is work, sleeps while there is none, and survives a step that fails."""

import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.sequence import SequenceStatus
from nanovllm.errors import QueueFull, RequestFailed
from nanovllm.outputs import RequestOutput
from nanovllm.serving.request import Delta, Request


class Follower(Protocol):
    """Whoever waits for a request. wants_deltas: tell it of every token, not of the end alone."""

    request: Request
    wants_deltas: bool


class News(NamedTuple):
    """What happened to a follower's request. output is there once it has ended; error too, when it ended badly."""

    follower: Follower
    deltas: list[Delta]
    output: RequestOutput | None = None
    error: RequestFailed | None = None


class EngineThread:
    """Steps one engine in a background thread.

    Owns the thread and, from then on, the engine: nobody else may call it. `submit`, `abort` and `stop` may be called
    from any thread; they leave a note, and the thread reads its notes between two steps. What happened goes out through
    `deliver`, which the thread calls once a step. It knows neither asyncio nor HTTP.

    max_queued: most samples that may wait for their first step; None sets no limit.
    """

    def __init__(self, engine: LLMEngine, deliver: Callable[[list[News]], None], max_queued: int | None = None):
        self._engine = engine
        self._deliver = deliver
        self._max_queued = max_queued
        self._changed = threading.Condition()
        self._notes: list[tuple[str, Follower]] = []
        self._followers: dict[Follower, None] = {}  # in order of arrival
        self._news: list[News] = []
        self._stopping = False
        self._error: BaseException | None = None
        self.num_queued = 0
        self._thread = threading.Thread(target=self._run, name="nanovllm-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def check_room(self, num_samples: int) -> None:
        """Raise QueueFull unless so many samples may still be queued; RequestFailed when nothing is served any more."""
        if not self.is_alive:
            raise RequestFailed("the engine was closed; make a new one") from self._error
        if self._max_queued is not None and self.num_queued + num_samples > self._max_queued:
            raise QueueFull(f"{self.num_queued} samples wait and {num_samples} more would pass max_queued={self._max_queued}; "
                            "ask again later")

    def submit(self, follower: Follower) -> None:
        """Queue the follower's request, and tell it what becomes of it. Raises as `check_room` does."""
        with self._changed:
            self.check_room(follower.request.params.n)
            self.num_queued += follower.request.params.n
            self._notes.append(("submit", follower))
            self._changed.notify()

    def abort(self, follower: Follower) -> None:
        """End the follower's request, if it still runs, before the next step."""
        with self._changed:
            self._notes.append(("abort", follower))
            self._changed.notify()

    def stop(self) -> None:
        """Let the step at hand end, fail every request that still runs, and end the thread. May be called again."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        reason = "the engine was closed"
        try:
            while self._read_notes():
                if self._engine.has_unfinished:
                    self._step()
                self._look_around()
                self._send()
        except BaseException as error:  # whatever it is, nobody may be left waiting for a thread that is gone
            self._error, reason = error, f"the engine's thread broke down: {error!r}"
        with self._changed:
            self._stopping = True
            self._followers |= dict.fromkeys(follower for note, follower in self._notes if note == "submit")
        for follower in list(self._followers):
            self._fail(follower, reason, self._error)
        self._send()

    def _read_notes(self) -> bool:
        """Sleep until there is something to do, and queue and abort what was asked for; False when asked to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._notes or self._engine.has_unfinished)
            if self._stopping:
                return False
            notes, self._notes = self._notes, []
        for note, follower in notes:
            try:
                if note == "submit":
                    self._followers[follower] = None
                    follower.request.submit()
                elif follower in self._followers:
                    follower.request.abort()
            except Exception as error:
                self._fail(follower, f"the request could not be queued: {error!r}", error)
        return True

    def _step(self) -> None:
        """One step. When it fails, so do the requests that were in it; those that still wait keep their place."""
        try:
            self._engine.step()
        except Exception as error:
            affected = [follower for follower in self._followers
                        if any(seq.status is SequenceStatus.RUNNING for seq in follower.request.sequences)]
            if not (affected or self._followers):
                raise  # the engine fails without any request of ours: it would do so for ever
            for follower in affected or list(self._followers):
                self._fail(follower, f"a step of the engine failed: {error!r}", error)

    def _look_around(self) -> None:
        """Note what became of every request."""
        for follower in list(self._followers):
            request = follower.request
            try:
                look = follower.wants_deltas or request.watches_text or request.has_run
                deltas = request.advance() if look else []
                output = request.output() if request.is_finished else None
            except Exception as error:
                self._fail(follower, f"the request's text could not be made: {error!r}", error)
                continue
            if deltas or output:
                self._news.append(News(follower, deltas, output))
            if output:
                del self._followers[follower]
        self._count_queued()

    def _count_queued(self) -> None:
        with self._changed:
            if self.num_queued:  # only `submit` adds to it
                submitted = [follower for note, follower in self._notes if note == "submit"]
                self.num_queued = sum(follower.request.params.n for follower in submitted) + sum(
                    seq.scheduled_at is None for follower in self._followers for seq in follower.request.sequences)

    def _fail(self, follower: Follower, message: str, cause: BaseException | None) -> None:
        """End a request with an error: an exception of its own, since two tasks cannot raise the same one."""
        self._followers.pop(follower, None)
        error = RequestFailed(message)
        error.__cause__ = cause
        output = None
        try:
            if follower.request.sequences:
                follower.request.abort("error")
                follower.request.advance()
                output = follower.request.output()
        except Exception as second:  # what broke may break again, and must not keep the first error from its caller
            error.add_note(f"and then: {second!r}")
        self._news.append(News(follower, [], output, error))

    def _send(self) -> None:
        news, self._news = self._news, []
        if news:
            self._deliver(news)
