"""One engine, several threads: who is inside. Imports no torch."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from nanovllm.utils.interrupts import interruptible, uninterrupted

P = ParamSpec("P")
T = TypeVar("T")


class Turn:
    """`with turn:` the engine is this thread's alone, and an interrupt waits until the block is done.

    Threads get their turn about in the order in which they ask. With a lock alone a thread that takes one step after
    another would keep the others out: it asks again before they have woken up. So there are two, and who holds `_next` has
    the next turn. A thread that has its turn may take it again within.
    """

    def __init__(self) -> None:
        self._lock, self._next = threading.RLock(), threading.RLock()
        self._guards: list[uninterrupted] = []  # of who is inside, outermost first
        self.is_stepping = False
        self._deferred: list[Callable[[], Any]] = []  # what was asked for in the middle of a step, by its own thread

    @property
    def is_ours(self) -> bool:
        """Whether this thread is inside."""
        return _is_ours(self._lock)

    def __enter__(self) -> None:
        guard = uninterrupted()
        guard.__enter__()
        if self.is_ours:
            self._lock.acquire()
        else:
            try:
                with interruptible():  # for another thread's step, which may take long
                    self._next.acquire()
                    self._lock.acquire()
            except BaseException:
                _release_own(self._next, self._lock)
                guard.__exit__()
                raise
            _release_own(self._next)
        self._guards.append(guard)

    def __exit__(self, *exc_info: object) -> None:
        guard = self._guards.pop()
        self._lock.release()
        guard.__exit__()

    def between_steps(self, call: Callable[[], T]) -> T | None:
        """Call it when it is our turn; None when that is later: a finalizer may come in the middle of its thread's own step."""
        with self:
            if self.is_stepping:
                self._deferred.append(call)
                return None
            return call()

    def call_deferred(self) -> None:
        """Do what `between_steps` put off."""
        while self._deferred:
            self._deferred.pop(0)()


class TakesTurns(Protocol):
    turn: Turn


Self = TypeVar("Self", bound=TakesTurns)


def in_turn(step: Callable[Concatenate[Self, P], T]) -> Callable[Concatenate[Self, P], T]:
    """Has a method wait for the thread's turn; what `between_steps` is asked for meanwhile comes after it.

    An interrupt gets through to the method, unlike to other calls in a turn.
    """
    @wraps(step)
    def wrapped(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.turn:
            self.turn.is_stepping = True
            try:
                with interruptible():
                    return step(self, *args, **kwargs)
            finally:
                self.turn.is_stepping = False
                self.turn.call_deferred()

    return wrapped


def _is_ours(lock: threading.RLock) -> bool:
    return bool(lock._is_owned())  # type: ignore[attr-defined]  # as threading.Condition asks


def _release_own(*locks: threading.RLock) -> None:
    """Release those that this thread came to hold before it was interrupted."""
    for lock in locks:
        if _is_ours(lock):
            lock.release()
