"""Interrupts held back until bookkeeping is done."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class _MainThread:
    """How the main thread, the only one in which Python delivers signals, takes interrupts at this moment.

    handler: the one of SIGINT that ours stands in for; None while ours is not installed. waits: whether an interrupt
    waits. caught: the one that does.
    """

    handler: Handler | None = None
    waits = False
    caught: tuple[int, FrameType | None] | None = None

    def on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.waits or self.handler is None:
            self.caught = signum, frame
        else:
            self.handler(signum, frame)

    def deliver(self, handler: Handler) -> None:
        """Let the interrupt that waited, if any, strike."""
        if self.caught is not None:
            caught, self.caught = self.caught, None
            handler(*caught)


_main = _MainThread()


class uninterrupted:
    """`with uninterrupted():` an interrupt (Ctrl-C, Jupyter's stop button) is held back until the block is done, then raised.

    For bookkeeping that must not stop half-way, and for nothing that takes long. It changes the handler of SIGINT for as
    long as the block runs; outside the main thread, where Python delivers no signals, it does nothing. Within another such
    block, whose end the interrupt then waits for, it costs next to nothing: to set a handler takes some ten microseconds.
    """

    _installed = _is_inner = _waited = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if _main.handler is not None:
            self._is_inner, self._waited, _main.waits = True, _main.waits, True
            return
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # else nobody in Python listens
            _main.handler, _main.waits, _main.caught = handler, True, None
            try:
                signal.signal(signal.SIGINT, _main.on_interrupt)
            except BaseException:  # an interrupt that came just before
                _main.handler, _main.waits = None, False
                raise
            self._installed = True

    def __exit__(self, *exc_info: object) -> None:
        handler = _main.handler
        if handler is None:
            return
        if self._installed:
            _main.handler, _main.waits = None, False  # first: an interrupt that comes in between is caught all the same
            signal.signal(signal.SIGINT, handler)
        elif self._is_inner:
            _main.waits = self._waited
        else:
            return
        if not _main.waits:
            _main.deliver(handler)


class interruptible:
    """`with interruptible():` inside a block that is `uninterrupted`: here, an interrupt strikes at once after all."""

    _is_inner = _waited = False

    def __enter__(self) -> None:
        if threading.get_ident() == threading.main_thread().ident and _main.handler is not None:
            _main.deliver(_main.handler)
            self._is_inner, self._waited, _main.waits = True, _main.waits, False

    def __exit__(self, *exc_info: object) -> None:
        if self._is_inner:
            _main.waits = self._waited
