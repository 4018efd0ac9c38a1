"""Where the time of a step goes: the GPU's by kind of kernel, the host's by phase, and what of it the GPU waits for."""

import re
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.scheduled_batch import ScheduledBatch

KINDS = {
    "attention": r"_decode_kernel|_decode_few_kernel|_verify_kernel|_join_kernel|_prefill_kernel|flash",
    "matmul": r"gemm|nvjet|cutlass|cublas|splitK|_linear_kernel|_qkv_kernel|_gate_kernel|wgmma",
    "sampler": r"_draw_kernel|_final_kernel|_survey_kernel|_gather_kernel|_choose_kernel",
    "norms, RoPE, gate, store": r"_norm_kernel|_inverse_rms|_norm_rope_store|_silu_and_mul|_store_kernel",
    "rows": r"_advance_kernel|_write_rows",
}


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def profile_steps(engine: LLMEngine, count: int) -> dict[str, Any]:
    """Milliseconds a step over `count` steps: by kind of kernel, in which any kernel ran, and in all; and the kernels."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            engine.step()
        torch.cuda.synchronize()
    kernels = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    busy, until = 0.0, float("-inf")
    for event in sorted(kernels, key=lambda e: e.time_range.start):
        start, end = event.time_range.start, event.time_range.end
        # A kernel launched early waits beside the one before it: only from that one's end on is the time its own.
        own = max(0.0, end - max(until, start)) * 1e-3 / count
        kinds[kind_of(event.name)] += own
        busy += own
        until = max(until, end)
        entry = names[event.name[:80]]
        entry[0], entry[1] = entry[0] + 1, entry[1] + (end - start) * 1e-3
    span = (until - min(e.time_range.start for e in kernels)) * 1e-3 / count
    top = sorted(names.items(), key=lambda item: -item[1][1])[:20]
    return {"by kind": dict(kinds), "busy": busy, "span": span, "kernels": len(kernels) / count,
            "top": [{"kernel": name, "calls": n / count, "ms": ms / count} for name, (n, ms) in top]}


class Watch:
    """Times of every step that ran while it watched, in milliseconds. host: phases; gpu: from a step's first work to its
    last; exposed: how long the GPU stood idle before it."""

    def __init__(self) -> None:
        self.host: dict[str, list[float]] = defaultdict(list)
        self.rows: list[int] = []
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def on(self, engine: LLMEngine) -> Iterator["Watch"]:
        """Wrap the engine's phases while the block runs; "draw" is that of late masks, see `Runner.draw`."""
        runner: Any = engine.model_runner
        scheduler: Any = engine.scheduler

        def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any) -> Any:
                start = time.perf_counter()
                try:
                    return call(*arguments)
                finally:
                    self.host[name].append((time.perf_counter() - start) * 1e3)
            return wrapped

        def marked(batch: ScheduledBatch) -> Any:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            launched = launch(batch)
            end.record()
            self._marks.append((start, end))
            self.rows.append(len(batch.items))
            return launched

        launch = timed("launch", runner.launch)
        runner.launch, runner.collect, runner.draw = marked, timed("collect", runner.collect), timed("draw", runner.draw)
        scheduler.schedule, scheduler.update = timed("schedule", scheduler.schedule), timed("update", scheduler.update)
        try:
            yield self
        finally:
            for owner, names in ((runner, ("launch", "collect", "draw")), (scheduler, ("schedule", "update"))):
                for name in names:
                    delattr(owner, name)
            torch.cuda.synchronize()

    @property
    def gpu(self) -> list[float]:
        return [start.elapsed_time(end) for start, end in self._marks]

    @property
    def exposed(self) -> list[float]:
        return [before.elapsed_time(after) for (_, before), (after, _) in zip(self._marks, self._marks[1:])]

    def summary(self) -> dict[str, Any]:
        host = {f"host {name} ms": statistics.median(times) for name, times in self.host.items()}
        return {"steps": len(self._marks), "gpu ms": statistics.median(self.gpu), "exposed ms": statistics.median(self.exposed),
                "exposed ms, mean": statistics.mean(self.exposed), **host}


@contextmanager
def clocks(found: dict[str, Any]) -> Iterator[None]:
    """Put what the GPU's clocks and power were while the block ran into `found`: a card at its power limit runs slower."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv,noheader,nounits", "-lms", "100",
             "-i", f"GPU-{torch.cuda.get_device_properties().uuid}"]  # fmt: skip
    try:
        watching = subprocess.Popen(query, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    except OSError:
        yield
        return
    try:
        yield
    finally:
        watching.terminate()
        lines = [line.split(",") for line in watching.communicate()[0].splitlines() if line.count(",") == 2]
        for name, column in zip(("SM MHz", "memory MHz", "watts"), zip(*lines)):
            try:
                values = [float(value) for value in column]
                found |= {name: statistics.median(values), f"least {name}": min(values), f"most {name}": max(values)}
            except ValueError:  # a card that does not tell
                pass
