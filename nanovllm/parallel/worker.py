"""One rank of a model that is split over processes: `python -m nanovllm.parallel.worker`, started by `WorkerGroup`."""

import json
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.parallel.channel import Channel, wait
from nanovllm.parallel.heartbeat import Heartbeat
from nanovllm.parallel.processes import mapped_shared_memory
from nanovllm.parallel.step_message import StepReader

if TYPE_CHECKING:  # they import torch: see `_start`
    from nanovllm.config import Config
    from nanovllm.engine.launched import Launched

BEAT_INTERVAL = 0.25  # seconds
BUSY_SHARE = 0.01  # of that time on a CPU makes a process busy; one that waits for a message uses none
COMPILE_TIMEOUT = 120.0  # seconds for which compiling one kernel counts as progress
NO_TIMEOUT = timedelta(days=7)  # collectives: the caller watches the workers, see WorkerGroup


class Worker:
    """Runs the caller's steps on this rank's share of the model.

    Owns a ModelRunner, made from the caller's configuration. It decides nothing and lives no longer than its caller: a
    thread of its own ends the process, whatever the others are doing, as soon as the caller is gone.

    activity: "computing" while use of a CPU counts as progress; "waiting" for a message, for the other ranks or for the
        device, while it does not. activity_in_step: which of the two it is while a message is being handled.
    """

    def __init__(self, rank: int, size: int, parent: int, connection: int, heartbeat: int, port: int, listener: int | None):
        self.rank, self.size, self.parent, self.port, self.listener = rank, size, parent, port, listener
        self.channel = Channel(socket.socket(fileno=connection))
        self.heartbeat = Heartbeat(heartbeat)
        self.activity = self.activity_in_step = "computing"
        self.compiling_until = 0.0
        self.step = 0
        self.reader = StepReader()
        self._messages: list[bytes] = []
        self.in_flight: dict[int, tuple[Launched, ScheduledBatch]] = {}  # step -> what the runner launched, and its batch
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def serve(self) -> None:
        """Handle messages until the caller sends "close"."""
        try:
            self._start(**pickle.loads(self._next_message())[2])
            runner = self.runner
            self._reply("ready", 0, {"num_blocks": runner.num_blocks, "bytes_per_block": runner.bytes_per_block,
                                   "backend": runner.backend.name, "why_no_one_shot_sums": self.why_no_one_shot_sums,
                                   "shared_memory": mapped_shared_memory("self")})
            while self._handle(*pickle.loads(self._next_message())):
                pass
        except Exception as error:
            # The caller raises it, and ends this process.
            self._reply("error", self.step, (type(error).__name__, str(error), traceback.format_exc()))
            while True:
                self._next_message()

    def _handle(self, what: str, step: int, message: Any) -> bool:
        """Handle one message; False when it ends the worker."""
        self.step = step
        if what == "step":
            content, collect = message
            batch = self.reader.read(content)
            self.in_flight[step] = self.runner.launch(batch), batch
            if collect is not None:
                self._collect(collect)
        elif what == "draw":
            launched, batch = self.in_flight[step]
            batch.bitmasks = message
            self.runner.draw(launched)
        elif what == "collect":
            self._collect(step)
        elif what == "reset":
            self.in_flight.clear()
            self.runner.reset()
        elif what == "close":
            import torch.distributed as dist
            self.runner.close()
            dist.destroy_process_group()
            return False
        return True

    def _collect(self, step: int) -> None:
        """Report what a step drew, and rank 0 also the log-probabilities that its sequences asked for."""
        launched, batch = self.in_flight.pop(step)
        token_ids = self.runner.collect(launched)
        logprobs = {}
        for item in batch.items:
            seq = item.seq
            if seq.logprobs:
                if self.rank == 0:
                    logprobs[seq.seq_id] = dict(seq.logprobs)
                seq.logprobs.clear()
        self._reply("tokens", step, (token_ids, logprobs))

    def _start(self, config: "Config", num_threads: int) -> None:
        """Join the other ranks, and load this one's share of the model."""
        import torch
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

        from nanovllm.engine.model_runner import ModelRunner
        from nanovllm.layers.tensor_parallel import TensorParallel
        from nanovllm.parallel.one_shot_sum import with_one_shot_sums

        torch.set_num_threads(num_threads)
        backend = "gloo"
        options: dict[str, Any] = {}
        if config.device.type == "cuda":
            config.device = torch.device("cuda", config.device.index + self.rank)
            torch.cuda.set_device(config.device)
            backend, options = "nccl", {"device_id": config.device}
        if sys.platform == "linux":  # all ranks are on this machine: nothing needs to leave it, nor a host's name be known
            for library in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        own: dict[str, Any] = {"is_master": True, "master_listen_fd": self.listener} if self.rank == 0 else {"is_master": False}
        store = TCPStore("127.0.0.1", self.port, timeout=NO_TIMEOUT, wait_for_workers=False, **own)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=NO_TIMEOUT, **options)
        tp, self.why_no_one_shot_sums = with_one_shot_sums(TensorParallel(self.rank, self.size), config.device, config.dtype)
        self.runner = ModelRunner(config, tp)
        if config.device.type == "cuda":
            self._expect_short_steps()

    def _expect_short_steps(self) -> None:
        """From here on only a kernel being compiled counts as progress within a step.

        On a GPU the host's part of a step takes milliseconds, and use of a CPU is no sign of progress: a driver that waits for
        room in its queue, behind a collective that another rank never joins, spins. Everything else that takes long the first
        time, such as joining the other ranks and capturing graphs, is done when a runner is made.
        """
        from nanovllm.layers.attention_backends import import_error

        self.activity_in_step = "waiting"
        if import_error("triton") is None:
            from triton import knobs  # the first hook is called before a kernel is compiled, or read from the disk
            knobs.runtime.jit_cache_hook = self._compiling
            knobs.runtime.jit_post_compile_hook = self._compiled

    def _compiling(self, **kernel: Any) -> None:
        self.compiling_until = time.monotonic() + COMPILE_TIMEOUT

    def _compiled(self, **kernel: Any) -> None:
        self.compiling_until = 0.0
        self.heartbeat.progress(self.rank)

    def _next_message(self) -> bytes:
        self.activity = "waiting"
        while True:
            if messages := self.channel.receive():
                self._messages.extend(messages)
            if self._messages:
                self.activity = self.activity_in_step
                self.heartbeat.progress(self.rank)
                return self._messages.pop(0)
            wait([self.channel], None)

    def _reply(self, what: str, step: int, content: object) -> None:
        self.channel.send(pickle.dumps((what, step, content)))
        while not self.channel.is_flushed:
            wait([self.channel], None)
            self.channel.flush()

    def _watch(self) -> None:
        """Beat, record progress, and end the process when the caller is gone."""
        disconnect = select.poll()
        disconnect.register(self.channel, getattr(select, "POLLRDHUP", 0))
        spent, at = time.process_time(), time.monotonic()
        while not disconnect.poll(1000 * BEAT_INTERVAL) and os.getppid() == self.parent:
            before, spent, at, last = spent, time.process_time(), time.monotonic(), at
            busy = spent - before > BUSY_SHARE * (at - last)
            if at < self.compiling_until or (self.activity == "computing" and busy):
                self.heartbeat.progress(self.rank)
            self.heartbeat.beat(self.rank)
        os.kill(os.getpid(), signal.SIGKILL)  # without cleaning up: another thread may be stuck in what would be cleaned up


def main(arguments: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the caller
    Worker(**arguments).serve()
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
