"""One step on one time axis, for chapter 11: made of round numbers, measured here, or recorded on a GPU."""

from pathlib import Path

import torch

from nanovllm import LLM, SamplingParams
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from visualizations.figures.gpu_timeline import operations_of

RECORDED = Path(__file__).parents[1] / "recorded"


def queue(kernels: list[float], launch: float, *, captured: bool = False) -> Trace:
    """A step made of round numbers: kernels, microseconds each, launched at `launch` microseconds apiece, or all by one."""
    trace, done = Trace(), 0.0
    for i, length in enumerate(kernels):
        launched = launch * (1 if captured else i + 1)
        start = max(launched, done)
        done = start + length
        spans = [("GPU 0, stream 7", f"kernel {i}", start, length)]
        if i == 0 or not captured:
            spans.append(("launches", "launch", launched - launch, 0.9 * launch))
        trace.operations += [{"track": track, "name": name, "time": at * 1e-6, "duration": took * 1e-6}
                             for track, name, at, took in spans]
    trace.append(StepRecord(0, 0.0, done * 1e-6, 0, [], {}, [], [], [], [], {}, {}, {}, {}, "", {},
                            phases={"launch": [0.0, done * 1e-6]}))
    return trace


def timelines(prompt: list[int]) -> tuple[dict[str, tuple[Trace, int]], str]:
    """The same decode step run eagerly and as a graph, for `plot_gpu_timeline`, and where it was measured."""
    if torch.cuda.is_available():
        runs, params = {}, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        for name, eager in (("eager", True), ("captured", False)):
            with LLM(enforce_eager=eager) as llm:
                llm.generate([prompt], params, use_tqdm=False)
                with llm.trace(profile=True) as trace:
                    llm.generate([prompt], params, use_tqdm=False)
            runs[name] = trace, len(trace) // 2
        return runs, f"measured now: {torch.cuda.get_device_name()}, the offline model, one sequence"
    files = {name: RECORDED / f"decode_{form}.trace" for name, form in (("eager", "eager"), ("captured", "graph"))}
    if not all(file.is_file() for file in files.values()):
        return {}, "no recorded GPU run of a decode step is in the repository yet, and there is no GPU here to make one"
    traces = {name: Trace.load(file) for name, file in files.items()}
    captured = traces["captured"]
    meta = captured.meta
    later = range(len(captured) // 2, len(captured))  # the first launches after a profiler has started take longer
    index = next((i for i in later if _starts_a_graph(captured, i)), len(captured) // 2)
    label = (f"recorded under the profiler on {meta.get('device', 'a device not noted')}, "
             f"{meta.get('date', 'date not noted')}, commit {meta.get('commit', 'not noted')}: "
             f"{len(captured[0].scheduled)} sequences of Qwen3-0.6B's shape")
    return {name: (trace, index) for name, trace in traces.items()}, label


def _starts_a_graph(trace: Trace, index: int) -> bool:
    """Is the graph's launch among the step's own calls? The profiler's clock and ours differ by some microseconds, so that a
    launch at the very beginning may be counted with the step before it."""
    launches, work = operations_of(trace, trace[index])
    return bool(work) and [o["name"] for o in launches].count("cudaGraphLaunch") == 1
