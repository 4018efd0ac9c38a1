"""Interrupts held back until bookkeeping is done."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class uninterrupted:
    """`with uninterrupted():` an interrupt (Ctrl-C, Jupyter's stop button) is held back until the block is done, then raised.

    For bookkeeping that must not stop half-way, and for nothing that takes long. It changes the handler of SIGINT for as
    long as the block runs; outside the main thread, where Python delivers no signals, it does nothing. Nor does it within
    another such block, whose end the interrupt then waits for: many small ones cost less inside a large one.
    """

    _is_open = False  # of the main thread

    def __enter__(self) -> None:
        self._previous: Callable[[int, FrameType | None], Any] | None = None
        self._caught: tuple[int, FrameType | None] | None = None
        if threading.current_thread() is threading.main_thread() and not uninterrupted._is_open:
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):  # else Python has no handler for it
                self._previous = previous
                signal.signal(signal.SIGINT, self._hold)
                uninterrupted._is_open = True

    def __exit__(self, *exc_info: object) -> None:
        if self._previous is not None:
            uninterrupted._is_open = False
            signal.signal(signal.SIGINT, self._previous)
            if self._caught is not None:
                self._previous(*self._caught)

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self._caught = signum, frame
