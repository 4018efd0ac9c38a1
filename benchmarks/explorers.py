"""How fast the explorers draw in a real Chromium: 200 steps of 64 sequences on 256 blocks, scrubbed through four times.

    python -m benchmarks explorers                    # all of them, a table, and benchmarks/results/explorers-<cpu>.json
    python -m benchmarks explorers block_table        # one of them, nothing written

Every pass moves the slider one step a frame. `draw`: milliseconds from the slider's event until the drawing code has
returned; of each step the best of three passes, after one that warms up, because other work on the machine only ever adds
to it. `fps`: frames a second of the best pass, the browser's own painting included; its screen is drawn in software here.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from benchmarks.machine import cpu, results_file
from nanovllm import LLM, SamplingParams
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.step_inputs import Layout
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from visualizations import (
    BatchMonitor,
    BlockTableExplorer,
    GraphTimelineExplorer,
    JourneyExplorer,
    SamplerExplorer,
    SchedulerExplorer,
    Simulation,
    TensorXRay,
    standalone_html,
    x_ray,
)
from visualizations.explorers.base import Explorer
from visualizations.explorers.journey_record import record_journey

STEPS, SEQUENCES, BLOCKS = 200, 64, 256
FRAME_MILLISECONDS = 16.0  # what a step may cost
WIDTHS = (700, 1400)
FLAGS = ["--no-sandbox", "--disable-gpu"]

SCRUB = """async (most) => {
  const slider = document.querySelector('.nvx-root input[type=range]');
  const low = +slider.min, grain = +slider.step || 1, span = Math.round((+slider.max - low) / grain);
  const steps = Math.min(most, span + 1), draw = [], began = performance.now();
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  for (let i = 0; i < steps; i++) {
    await frame();
    const start = performance.now();
    slider.value = low + Math.round(i * span / Math.max(1, steps - 1)) * grain;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    draw.push(performance.now() - start);
  }
  await frame();
  return { draw, fps: 1000 * steps / (performance.now() - began) };
}"""
PASSES = 3


def big_run(scheduler_cls: type[Scheduler] = Scheduler) -> Simulation:
    """64 requests that share a system prompt and draw tokens for 200 steps on 256 blocks."""
    simulation = Simulation(num_blocks=BLOCKS, block_size=64, max_num_batched_tokens=256, max_num_seqs=SEQUENCES,
                            scheduler_cls=scheduler_cls)
    system = " ".join(f"rule {i} ," for i in range(22))
    for i in range(SEQUENCES):
        simulation.add(f"{system} and this is question number {i}", STEPS - 8, at=i // 8)
    simulation.run(STEPS)
    return simulation


def big_tensors() -> TensorXRay:
    """The tensors of every step of `big_run`."""
    steps = []

    class Watched(Scheduler):
        def schedule(self) -> ScheduledBatch:
            batch = super().schedule()
            steps.append(x_ray(batch, Layout.of(batch.items, 64), 64))
            return batch

    simulation = big_run(Watched)
    return TensorXRay(steps, decode=simulation.decode)


def big_step() -> GraphTimelineExplorer:
    """A decode step of 28 layers of twelve kernels, launched one by one and as a graph; the times are made up."""
    kinds = "norm linear norm_rope_store decode join linear norm linear silu linear copy rest".split()
    runs = {}
    for name, apart in (("eager", 5.5e-6), ("captured", 1.9e-6)):
        trace = Trace()
        kernels: list[dict[str, Any]] = [{"track": "GPU 0, stream 7", "name": f"_{kind}_kernel", "time": 2e-5 + i * apart,
                                          "duration": 1.7e-6}
                   for i, kind in enumerate(kinds * 28)]
        launches = kernels if name == "eager" else kernels[:1]
        trace.operations = kernels + [o | {"track": "launches", "name": "cudaLaunchKernel", "time": o["time"] - 9e-6}
                                      for o in launches]
        trace.append(StepRecord(0, 0.0, kernels[-1]["time"] + 1e-5, 8, [], {}, [], [], [], [], {}, {}, {}, {}, "", {},
                                phases={"schedule": [0.0, 4e-6], "launch": [4e-6, 1e-3]}))
        runs[name] = (trace, 0)
    return GraphTimelineExplorer(runs, step=0)


def journey() -> JourneyExplorer:
    """A prompt of the offline model through every room: about a hundred stops, with the source of each."""
    with LLM(kvcache_block_size=16, num_kvcache_blocks=64) as llm:
        return JourneyExplorer(record_journey(llm, "Once upon a time there was a fox who lived by the sea",
                                              SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)))


# What `python -m benchmarks explorers` measures: name -> an explorer of that size.
def big_logits() -> SamplerExplorer:
    """Each step sorts another row of scores, as many as the offline model's vocabulary, and filters it."""
    rows = 4 * np.random.default_rng(0).standard_normal((64, 2560))
    params = SamplingParams(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01)
    return SamplerExplorer(rows, lambda i: f" word{i}", params=params)


def long_watch() -> BatchMonitor:
    """As many looks as are kept, each at twelve sequences."""
    with LLM(num_kvcache_blocks=BLOCKS) as llm:
        monitor = BatchMonitor(llm)
        monitor.watch.texts = {i: "and so the fox and the hen went home " * 20 for i in range(12)}
        monitor.watch.frames = [
            {"time": i / 10, "steps": i, "prompt": 9 * i, "decode": 12 * i + i % 7, "finished": 0, "preemptions": 0,
             "running": 12, "waiting": i % 5, "used": i % BLOCKS, "shared": i % 40, "cached": 0, "free": BLOCKS - i % BLOCKS,
             "rows": [[k, 40, 700, 40 + i, 40 + i, "r", i] for k in range(12)]} for i in range(600)]
        monitor.refresh()
        return monitor


EXPLORERS: dict[str, Callable[[], Explorer]] = {
    "scheduler": lambda: SchedulerExplorer(big_run().trace),
    "block_table": lambda: BlockTableExplorer(big_run()),
    "tensor_xray": big_tensors,
    "graph_timeline": big_step,
    "journey": journey,
    "sampler": big_logits,
    "monitor": long_watch,
}


def measure(page: Page, explorer: Explorer, folder: Path, width: int) -> dict[str, Any]:
    """Milliseconds and frames of one explorer on a page of its own."""
    file = folder / "page.html"
    file.write_text(standalone_html([explorer]), encoding="utf-8")
    page.set_viewport_size({"width": width, "height": 1000})
    page.goto(file.as_uri())
    page.wait_for_selector(".nvx-root[data-ready]")
    page.evaluate(SCRUB, STEPS)  # fonts and code are warm from here on
    passes = [page.evaluate(SCRUB, STEPS) for _ in range(PASSES)]
    draw = [min(times) for times in zip(*(one["draw"] for one in passes), strict=True)]
    return {"steps": len(draw), "fps": round(max(one["fps"] for one in passes), 1),
            "draw": {"median": round(statistics.median(draw), 2), "p95": round(statistics.quantiles(draw, n=20)[-1], 2),
                     "max": round(max(draw), 2)}}


def chromium() -> str:
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    for name in names:
        if name and (path := shutil.which(name)):
            return path
    raise RuntimeError("no Chromium here: install one, or name it with CHROMIUM=/path/to/chrome.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks explorers", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *EXPLORERS], help="which explorers; all, if none is named")
    names = parser.parse_args().names or list(EXPLORERS)
    results: dict[str, dict[str, Any]] = {}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        version = browser.version
        for name in names:
            explorer = EXPLORERS[name]()
            results[name] = {"kilobytes": round(len(explorer.payload) / 1000, 1)}
            for width in WIDTHS:
                page = browser.new_page()
                results[name][f"{width} px"] = seen = measure(page, explorer, Path(folder), width)
                page.close()
                draw = seen["draw"]
                slow = "" if draw["max"] <= FRAME_MILLISECONDS else f"  over {FRAME_MILLISECONDS} ms"
                print(f"{name:16} {width:5} px {seen['steps']:4} steps  draw: median {draw['median']:5.2f} ms, "
                      f"p95 {draw['p95']:5.2f}, max {draw['max']:5.2f}{slow}  {seen['fps']:5.1f} frames/s", flush=True)
        browser.close()
    if names == list(EXPLORERS):
        machine = {"cpu": cpu(), "cores": os.cpu_count(), "load": [round(load, 1) for load in os.getloadavg()],
                   "chromium": version, "date": datetime.date.today().isoformat()}
        size = {"steps": STEPS, "sequences": SEQUENCES, "blocks": BLOCKS, "limit_ms": FRAME_MILLISECONDS}
        file = results_file(f"explorers {machine['cpu']}")
        file.write_text(json.dumps(machine | size | {"explorers": results}, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
