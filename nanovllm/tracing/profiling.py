"""What the device did while a trace was recorded, on the trace's own clock."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from nanovllm.tracing.trace import Trace

CLOCK = "nanovllm: the trace's clock"


@contextmanager
def profiled(trace: Trace, device: torch.device) -> Iterator[None]:
    """Fill `trace.operations` with what ran on `device` inside the block.

    On a GPU: its kernels and copies, a track per stream, and the host's calls that launched them (cudaLaunchKernel,
    cudaGraphLaunch ...). On a CPU: the outermost operators.
    """
    # The profiler's own library writes two lines to stderr for each recording, into a notebook's output too.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        # The profiler has a clock of its own; a mark whose time is known on both ties them together.
        marked = time.perf_counter()
        with record_function(CLOCK):
            pass
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(device)
    events = profiler.events()
    (mark,) = [e for e in events if e.name == CLOCK and e.device_type == DeviceType.CPU]
    offset = marked - trace.began - mark.time_range.start * 1e-6
    for event in events:
        if event is not mark and (track := _track(event, cuda)):
            trace.operations.append({"track": track, "name": event.name, "time": event.time_range.start * 1e-6 + offset,
                                     "duration": event.time_range.elapsed_us() * 1e-6})
    trace.operations.sort(key=lambda operation: operation["time"])


def _track(event: Any, cuda: bool) -> str | None:
    if event.device_type == DeviceType.CUDA:
        return f"GPU {event.device_index}, stream {event.device_resource_id}"
    if cuda:
        return "launches" if event.name.startswith(("cuda", "cu")) else None
    return None if event.cpu_parent else f"CPU operators, thread {event.thread}"
