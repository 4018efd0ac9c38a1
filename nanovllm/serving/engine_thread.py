"""The engine's own thread: it steps while there is work, sleeps while there is none, and survives a step that fails."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.sequence import SequenceStatus
from nanovllm.errors import QueueFull, RequestFailed
from nanovllm.outputs import RequestOutput
from nanovllm.serving.request import Delta, Request
from nanovllm.serving.stepping import step

logger = logging.getLogger("nanovllm")


class RequestHandle(Protocol):
    """What the caller keeps of a request that it queued. wants_deltas: report every token, not the end alone."""

    request: Request
    wants_deltas: bool


Handle = TypeVar("Handle", bound=RequestHandle)


class RequestUpdate(NamedTuple, Generic[Handle]):
    """What a request gained. output: set once it has ended. error: set, too, when it ended badly."""

    handle: Handle
    deltas: list[Delta]
    output: RequestOutput | None = None
    error: RequestFailed | None = None


class EngineThread(Generic[Handle]):
    """Steps one engine in a background thread.

    Owns the thread; the engine may be used by other threads beside it. `submit`, `abort` and `stop` may be called
    from any thread; they queue a command, and the thread runs its commands between two steps. Updates go out through
    `deliver`, which the thread calls once per step. It knows neither asyncio nor HTTP.

    max_queued: most samples that may wait for their first step; None sets no limit.
    """

    def __init__(self, engine: LLMEngine, deliver: Callable[[list[RequestUpdate[Handle]]], None],
                 max_queued: int | None = None):
        self._engine = engine
        self._deliver = deliver
        self._max_queued = max_queued
        self._changed = threading.Condition()
        self._commands: list[tuple[Literal["submit", "abort"], Handle]] = []
        self._handles: dict[Handle, None] = {}  # in order of arrival
        self._updates: list[RequestUpdate[Handle]] = []
        self._stopping = False
        self._num_steps_seen = engine.num_steps
        self._error: BaseException | None = None
        self.num_queued = 0
        self._thread = threading.Thread(target=self._run, name="nanovllm-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def check_room(self, num_samples: int) -> None:
        """Raise QueueFull unless so many samples may still be queued; RequestFailed when nothing is served any more."""
        if not self.is_alive or self._engine.is_closed:
            raise RequestFailed("the engine was closed; make a new one") from self._error
        if self._max_queued is not None and self.num_queued + num_samples > self._max_queued:
            raise QueueFull(f"{self.num_queued} samples wait and {num_samples} more would pass max_queued={self._max_queued}; "
                            "ask again later")

    def submit(self, handle: Handle) -> None:
        """Queue the handle's request, and deliver its updates. Raises as `check_room` does."""
        with self._changed:
            self.check_room(handle.request.params.n)
            self.num_queued += handle.request.params.n
            self._commands.append(("submit", handle))
            self._changed.notify()

    def abort(self, handle: Handle) -> None:
        """End the handle's request, if it still runs, before the next step."""
        with self._changed:
            self._commands.append(("abort", handle))
            self._changed.notify()

    def stop(self) -> None:
        """Let the step at hand end, fail every request that still runs, and end the thread. May be called again."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        # A finalizer may come in a step of any thread, for whose end ours may be waiting.
        if threading.current_thread() is not self._thread and not self._engine.turn.is_ours:
            self._thread.join()

    def _run(self) -> None:
        reason = "the engine was closed"
        try:
            while self._run_commands():
                if self._handles:
                    self._step()
                self._collect_updates()
                self._deliver_updates()
        except BaseException as error:  # whatever it is, no caller may be left waiting for a thread that has ended
            self._error, reason = error, f"the engine's thread broke down: {error!r}"
            logger.error(reason, exc_info=error)
        with self._changed:
            self._stopping = True
            self._handles |= dict.fromkeys(handle for command, handle in self._commands if command == "submit")
        for handle in list(self._handles):
            self._fail(handle, _failed(reason, self._error))
        self._deliver_updates()

    def _run_commands(self) -> bool:
        """Wait for commands or requests of ours, and run the commands. False once `stop` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._commands or self._handles)
            if self._stopping:
                return False
            commands, self._commands = self._commands, []
        if commands:
            with self._engine.turn:  # one for all of them
                for command, handle in commands:
                    self._run_command(command, handle)
        return True

    def _run_command(self, command: str, handle: Handle) -> None:
        try:
            if command == "submit":
                self._handles[handle] = None
                handle.request.submit()
            elif handle in self._handles:
                handle.request.abort()
        except Exception as error:
            logger.error("a request could not be queued", exc_info=error)
            self._fail(handle, _failed(f"the request could not be queued: {error!r}", error))

    def _step(self) -> None:
        """One step. When nobody can tell whose fault it is that it fails, all requests that were in it fail.

        Those that still wait keep their place.
        """
        try:
            self._num_steps_seen = step(self._engine, self._num_steps_seen)
        except Exception as error:
            if self._engine.is_closed:
                for handle in list(self._handles):
                    self._fail(handle, _failed(str(error), error))
                return
            affected = [handle for handle in self._handles
                        if any(seq.status is SequenceStatus.RUNNING for seq in handle.request.sequences)]
            for handle in affected or list(self._handles):
                self._fail(handle, _failed(f"a step of the engine failed: {error!r}", error))

    def _collect_updates(self) -> None:
        """Take the new tokens of every request, and the output of those that have ended."""
        for handle in list(self._handles):
            request = handle.request
            try:
                if request.error:
                    self._fail(handle, request.error)
                    continue
                is_due = handle.wants_deltas or request.watches_text or request.has_run
                deltas = request.advance() if is_due else []
                output = None
                if request.is_finished:
                    with self._engine.turn:  # in a step of another thread, its last time stamp may be still to come
                        output = request.output()
            except Exception as error:
                logger.error("a request's text could not be made", exc_info=error)
                self._fail(handle, _failed(f"the request's text could not be made: {error!r}", error))
                continue
            if deltas or output:
                self._updates.append(RequestUpdate(handle, deltas, output))
            if output:
                del self._handles[handle]
        self._count_queued()

    def _count_queued(self) -> None:
        with self._changed:
            if self.num_queued:  # only `submit` adds to it
                submitted = [handle for command, handle in self._commands if command == "submit"]
                self.num_queued = sum(handle.request.params.n for handle in submitted) + sum(
                    seq.scheduled_at is None for handle in self._handles for seq in handle.request.sequences)

    def _fail(self, handle: Handle, error: RequestFailed) -> None:
        """End a request with an error, which must be its own: two tasks cannot raise the same exception."""
        self._handles.pop(handle, None)
        output = None
        try:
            if handle.request.sequences:
                handle.request.abort("error")
                handle.request.advance()
                output = handle.request.output()
        except Exception as second:  # what broke may break again, and must not keep the first error from its caller
            error.add_note(f"and then: {second!r}")
        self._updates.append(RequestUpdate(handle, [], output, error))

    def _deliver_updates(self) -> None:
        updates, self._updates = self._updates, []
        if updates:
            self._deliver(updates)


def _failed(message: str, cause: BaseException | None) -> RequestFailed:
    error = RequestFailed(message)
    error.__cause__ = cause
    return error
