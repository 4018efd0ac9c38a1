import signal
import threading

import pytest

from nanovllm.utils.interrupts import uninterrupted


def test_an_interrupt_waits_for_the_end_of_the_block_nested_ones_too():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens_and_errors_pass():
    with uninterrupted():
        pass
    with pytest.raises(ValueError, match="own"), uninterrupted():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_ones_own_is_called_once_and_kept():
    calls = []
    own = lambda *arguments: calls.append(arguments)  # noqa: E731
    previous = signal.signal(signal.SIGINT, own)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert len(calls) == 1 and signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_are_left_alone():
    seen = []

    def work():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize("nth, is_late", [(0, False), (0, True), (1, False), (1, True)],
                         ids=["before it is installed", "just installed", "before it is removed", "just removed"])
def test_an_interrupt_while_the_handler_changes_strikes_once_and_leaves_no_trace(nth, is_late, monkeypatch):
    set_handler, calls, struck = signal.signal, [], []

    def set_and_strike(signum, handler):
        calls.append(handler)
        strikes = len(calls) == nth + 1
        if strikes and not is_late:
            signal.raise_signal(signal.SIGINT)
        previous = set_handler(signum, handler)
        if strikes and is_late:
            signal.raise_signal(signal.SIGINT)
        return previous

    monkeypatch.setattr(signal, "signal", set_and_strike)
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            struck.append("the block ran")
    assert len(struck) == (nth or is_late)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with uninterrupted():  # the next one guards as ever, and finds no interrupt left over
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
