"""What BatchMonitor costs the engine that it watches, in a real Jupyter kernel: the same requests with and without it.

    python -m benchmarks.monitor          # a table, and benchmarks/results/monitor-<device>.json

Pairs of runs, one watched and one not, in turn. `processor`: seconds of processor time of the whole kernel, the thread that
sends to the browser included; on a shared machine it says more than the wall clock, though both are noisy there.
`look_ms`: processor time that one of the at most ten looks a second takes from the thread that steps the engine; `step_us`:
what every other step takes. `most_percent` follows from the two: the share of that thread at ten looks a second and
`STEPS_A_SECOND` steps, more than the fastest engine here takes.
"""

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient

from benchmarks.machine import RESULTS, commit, cpu, results_file, versions
from nanovllm import LLM, SamplingParams
from visualizations.explorers.monitor import BatchMonitor

MARK = "measured: "
STEPS_A_SECOND = 1000


def compare(requests: int, tokens: int, pairs: int) -> dict[str, Any]:
    """Runs inside the kernel."""
    llm = LLM(num_kvcache_blocks=2048)
    prompts = [f"Story number {i}: once upon a time there was a fox" for i in range(requests)]
    params = SamplingParams(temperature=0.8, max_tokens=tokens, seed=1, ignore_eos=True)

    def run() -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - wall, time.process_time() - processor

    run()
    without, watched, looks = [], [], 0
    for _ in range(pairs):
        without.append(run())
        monitor = BatchMonitor(llm)
        watched.append(run())
        looks += monitor.watch.num_frames
        monitor.close()
    first = llm.engine.num_steps
    run()
    steps = llm.engine.num_steps - first
    result: dict[str, Any] = {"steps_a_run": steps, "ms_a_step": 1000 * statistics.median(wall for wall, _ in without) / steps,
              "looks_a_second": looks / sum(wall for wall, _ in watched)}
    for place, clock in enumerate(("wall", "processor")):
        times = {"without": [run[place] for run in without], "watched": [run[place] for run in watched]}
        ratio = statistics.median(times["watched"]) / statistics.median(times["without"])
        result[clock] = times | {"cost_percent": 100 * (ratio - 1)}
    return result | _apart(llm, run)


def _apart(llm: LLM, run: Callable[[], object]) -> dict[str, Any]:
    """Processor time of a look and of a step without one, in the thread that steps."""
    monitor = BatchMonitor(llm)
    watch: Any = monitor.watch
    count = watch._count
    looks: list[float] = []
    others: list[float] = []

    def timed(*step: Any) -> None:
        seen, start = watch.num_frames, time.thread_time()
        count(*step)
        (looks if watch.num_frames > seen else others).append(time.thread_time() - start)

    watch._count = timed
    run()
    monitor.close()
    look, other = statistics.mean(looks), statistics.mean(others)
    return {"look_ms": 1e3 * look, "step_us": 1e6 * other, "most_percent": 100 * (10 * look + STEPS_A_SECOND * other)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    sizes = vars(options)
    source = f"import json\nfrom benchmarks.monitor import compare\nprint({MARK!r} + json.dumps(compare(**{sizes})))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    where = {"metadata": {"path": str(RESULTS.parents[1])}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()
    text = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    result = json.loads(text.split(MARK, 1)[1].splitlines()[0])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu()
    print(f"{device}: {result['looks_a_second']:.1f} looks a second of {result['look_ms']:.2f} ms, {result['step_us']:.0f} us "
          f"in every other step: at most {result['most_percent']:.2f}% of the thread that steps.\nMeasured over whole runs: "
          f"processor time {result['processor']['cost_percent']:+.2f}%, wall clock {result['wall']['cost_percent']:+.2f}%")
    about = {"device": device, "date": datetime.date.today().isoformat(), "commit": commit(), **versions("anywidget"),
             "load_average": os.getloadavg()[0]}
    results_file(f"monitor {device}").write_text(json.dumps(about | sizes | result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
