"""One engine, several threads: who is inside. Imports no torch."""

import threading

from nanovllm.utils.interrupts import interruptible, uninterrupted


class Turn:
    """`with turn:` the engine is this thread's alone, and an interrupt waits until the block is done.

    Threads get their turn about in the order in which they ask. With a lock alone a thread that takes one step after
    another would keep the others out: it asks again before they have woken up. So there are two, and who holds `_next` has
    the next turn. A thread that has its turn may take it again within.
    """

    def __init__(self) -> None:
        self._lock, self._next = threading.RLock(), threading.RLock()
        self._guards: list[uninterrupted] = []  # of who is inside, outermost first

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
                _let_go(self._next, self._lock)
                guard.__exit__()
                raise
            _let_go(self._next)
        self._guards.append(guard)

    def __exit__(self, *exc_info: object) -> None:
        guard = self._guards.pop()
        self._lock.release()
        guard.__exit__()


def _is_ours(lock: threading.RLock) -> bool:
    return bool(lock._is_owned())  # type: ignore[attr-defined]  # as threading.Condition asks


def _let_go(*locks: threading.RLock) -> None:
    """Release those that this thread came to hold before it was interrupted."""
    for lock in locks:
        if _is_ours(lock):
            lock.release()
