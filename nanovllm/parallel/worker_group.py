"""The processes that hold the ranks of a split model, as their caller sees them: started, sent messages, watched, ended."""

import json
import mmap
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from nanovllm.errors import CheckpointError, EngineError, InvalidArgument, NanoVLLMError
from nanovllm.parallel.channel import Channel, wait
from nanovllm.parallel.heartbeat import Heartbeat
from nanovllm.parallel.processes import exit_description, mapped_shared_memory
from nanovllm.utils.interrupts import uninterrupted

POLL_INTERVAL = 0.2  # seconds between two checks of the workers while waiting for them
SHUTDOWN_TIMEOUT = 3.0  # seconds a worker gets to end by itself
START_TIMEOUT = 120.0  # seconds without a sign of life while a worker starts: a slow disk may hold it up
LOG_TAIL = 2000  # characters of a dead worker's output that go into the error
# What a worker may raise while it starts that the caller is to see as it is.
SETTING_ERRORS = {"ValueError": InvalidArgument, "InvalidArgument": InvalidArgument, "CheckpointError": CheckpointError}

Reply = tuple[str, int, Any]  # what it is, the step that it belongs to, its content


class WorkerGroup:
    """One process for each rank, none of which outlives this object or its process, however either ends.

    Owns the processes and a channel to each. All ranks are workers, and the caller is none: it never waits inside a
    collective, so it can always be interrupted, notice a rank that died or hangs, and end the others.

    The workers are programs of their own, not forks and not multiprocessing's children: they import nothing of the
    caller's `__main__`, so a script needs no guard and a notebook can start them from any cell. They meet at a port of the
    loopback device that the system picks, which is bound before anybody is told.

    timeout: seconds without a sign of life after which a worker counts as hung.
    """

    def __init__(self, size: int, timeout: float):
        self.size, self.timeout = size, timeout
        self.failure: str | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        self._logs: list[BinaryIO] = []
        self._replies: list[list[Reply]] = [[] for _ in range(size)]
        self.shared_memory: set[str] = set()
        page = tempfile.TemporaryFile()
        page.truncate(mmap.PAGESIZE)
        self._heartbeat = Heartbeat(page.fileno())
        self.close = weakref.finalize(self, _end, self._processes, self._channels, self._logs, self.shared_memory, os.getpid())
        with page, socket.create_server(("127.0.0.1", 0)) as listener, uninterrupted():
            for rank in range(size):
                self._start(rank, page, listener)

    def __repr__(self) -> str:
        return f"WorkerGroup(processes {', '.join(str(process.pid) for process in self._processes)})"

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    @property
    def are_alive(self) -> bool:
        return self.close.alive

    def send(self, what: str, step: int, content: object = None) -> None:
        """Send every rank one message. Raises EngineError when the workers are gone."""
        self._require_workers()
        with uninterrupted():
            message = pickle.dumps((what, step, content), pickle.HIGHEST_PROTOCOL)
            for channel in self._channels:
                channel.send(message)

    def replies(self, what: str, step: int, limit: float | None = None) -> list[Any]:
        """Wait for every rank's reply `what` to a step, and return their contents in rank order.

        Replies to earlier steps, which an interrupt kept from being read, are dropped. Raises EngineError, after it has
        ended all workers, when one died, hangs, or had an exception; while they start, an InvalidArgument or CheckpointError
        of theirs as it is.
        """
        self._require_workers()
        began = time.monotonic()
        while None in (found := [self._find(rank, what, step) for rank in range(self.size)]):
            wait(self._channels, POLL_INTERVAL)
            with uninterrupted():
                for channel, replies in zip(self._channels, self._replies):
                    channel.flush()
                    replies.extend(pickle.loads(message) for message in channel.receive())
            for rank, replies in enumerate(self._replies):
                for kind, at, content in replies:
                    if kind == "error":  # which the end of another rank may have caused
                        self.fail(self.exited(0.5) or f"rank {rank} raised {content[0]}: {content[1]}", at, content)
            if reason := self.exited() or self._unresponsive(began, limit or self.timeout):
                self.fail(reason, step)
        with uninterrupted():
            for replies in self._replies:
                replies[:] = [reply for reply in replies if reply[1] > step]
        return [reply[2] for reply in found if reply]

    def _find(self, rank: int, what: str, step: int) -> Reply | None:
        return next((reply for reply in self._replies[rank] if reply[:2] == (what, step)), None)

    def _start(self, rank: int, page: BinaryIO, listener: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()
        self._channels.append(Channel(ours))
        self._logs.append(log)
        arguments = {"rank": rank, "size": self.size, "parent": os.getpid(), "connection": theirs.fileno(),
                     "heartbeat": page.fileno(), "port": listener.getsockname()[1],
                     "listener": listener.fileno() if rank == 0 else None}
        inherited = [theirs.fileno(), page.fileno(), *([listener.fileno()] if rank == 0 else [])]
        # The path as it is now: a notebook may have changed it. A session of its own keeps the terminal's and Jupyter's
        # signals, meant for the caller, away from it.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with theirs:
            self._processes.append(subprocess.Popen(
                [sys.executable, "-P", "-m", "nanovllm.parallel.worker", json.dumps(arguments)], pass_fds=inherited,
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))

    def exited(self, patience: float = 0.0) -> str | None:
        """Which worker has ended, and how; None while all run. patience: seconds to wait for one to end."""
        until = time.monotonic() + patience
        while True:
            for rank, process in enumerate(self._processes):
                if process.poll() is not None:
                    return f"rank {rank} (process {process.pid}) {exit_description(process.returncode)}"
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)

    def _unresponsive(self, began: float, limit: float) -> str | None:
        """Which worker has not beaten for `limit` seconds, or that none has made progress for as long; else None.

        A worker that waits for the others is not hung as long as one of them makes progress.
        """
        now, heartbeat = time.monotonic(), self._heartbeat
        for rank, process in enumerate(self._processes):
            if now - max(began, heartbeat.last_beat(rank)) > limit:
                return (f"rank {rank} (process {process.pid}) has shown no sign of life for {limit:g} s (worker_timeout): "
                        "it is stopped, or stuck in a driver")
        if now - max(began, *(heartbeat.last_progress(rank) for rank in range(self.size))) > limit:
            return (f"no rank has made progress for {limit:g} s: they wait for each other or for the device; if a step may "
                    "take that long here, raise worker_timeout")
        return None

    def _require_workers(self) -> None:
        if not self.are_alive:
            reason = f"ended when {self.failure}" if self.failure else "closed"
            raise EngineError(f"the workers of this engine were {reason}; make a new LLM.")

    def fail(self, reason: str, step: int, raised: tuple[str, str, str] | None = None) -> NoReturn:
        """End all workers at once, and raise what happened. raised: (type, message, traceback) of an exception of theirs."""
        self.failure = reason
        outputs = [_log_tail(log) for log in self._logs]
        _kill(self._processes, self.shared_memory)
        self.close()
        when = f"in step {step}" if step else "while it was starting"
        error: NanoVLLMError = EngineError(f"{reason}, {when}. All {self.size} workers were ended, and the KV cache is lost "
                                           "with them: make a new LLM.")
        if raised and raised[0] in SETTING_ERRORS and not step:  # a setting that only they could judge
            error = SETTING_ERRORS[raised[0]](raised[1])
        if raised:
            error.add_note(f"in the worker:\n{raised[2]}")
        for rank, text in enumerate(outputs):
            if text:
                error.add_note(f"rank {rank} said last:\n{text}")
        raise error


def _log_tail(log: BinaryIO) -> str:
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - LOG_TAIL))
    return log.read().decode(errors="replace").strip()


def _kill(processes: list[subprocess.Popen[bytes]], shared_memory: set[str]) -> None:
    """Kill those that still run, and add to `shared_memory` the files that they can then no longer unlink."""
    for process in processes:
        if process.poll() is None:
            shared_memory |= mapped_shared_memory(process.pid)
    for process in processes:
        process.kill()


def _end(processes: list[subprocess.Popen[bytes]], channels: list[Channel], logs: list[BinaryIO], shared_memory: set[str],
         owner: int) -> None:
    """End the workers, by a message and then by a signal, and remove what they leave. Returns within seconds in any case."""
    if os.getpid() != owner:
        return  # a fork of the caller, which inherited the objects but not the processes
    with uninterrupted():
        message = pickle.dumps(("close", 0, None))
        for channel in channels:
            channel.send(message)
        until = time.monotonic() + SHUTDOWN_TIMEOUT
        while time.monotonic() < until and any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0) for process in processes):
                break  # the others would wait for it
            time.sleep(0.01)
        _kill(processes, shared_memory)
        for process in processes:
            try:
                process.wait(SHUTDOWN_TIMEOUT)
            except subprocess.TimeoutExpired:
                pass  # a driver holds it: it ends when the driver returns
        for file in shared_memory:
            Path(file).unlink(missing_ok=True)
        for channel in channels:
            channel.close()
        for log in logs:
            log.close()
