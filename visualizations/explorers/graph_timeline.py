"""GraphTimelineExplorer: one decode step run eagerly and as a CUDA graph, on one time axis that zooms."""

import re
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check
from visualizations import theme
from visualizations.explorers.base import Explorer
from visualizations.figures.gpu_timeline import busy_seconds, operations_of, plot_gpu_timeline

# What a kernel or an operator is for, by its name; the first that fits. Hues are those of the theme, None its grey.
KINDS = (("attention", r"attention|sdpa|flash|fwd_split|_decode_kernel|_join_kernel|_prefill_kernel", 0),
         ("matrix products", r"gemm|gemv|linear|matmul|\bmm\b|addmm|bmm|cutlass|nvjet|cublas|splitk", 1),
         ("norms, RoPE, cache store", r"norm|rope|rotary|store|silu", 2),
         ("sampling", r"sample|softmax|argmax|topk|sort|multinomial|draw|gumbel", 3),
         ("copies", r"memcpy|memset|copy|::to\b", None),
         ("the rest", r"", 7))
TICKS = 120  # of the player over the longest run
RESOLUTION = 1e-8  # seconds in a unit of the packed times


def kind_of(name: str) -> int:
    """The place in KINDS of an operation."""
    return next(i for i, (_, pattern, _) in enumerate(KINDS) if re.search(pattern, name, re.IGNORECASE))


class GraphTimelineExplorer(Explorer):
    """Host phases, launches and kernels of a step, one run below the other; play it in slow motion, zoom, point.

        GraphTimelineExplorer({"eager": (eager_trace, 12), "captured": (graph_trace, 12)})

    runs: {name: (trace recorded with profile=True, index of the record)}, as `plot_gpu_timeline` takes them; the traces
    may have been recorded elsewhere. Without a GPU operators stand where kernels would, and nothing is launched. Raises
    ValueError for a trace without operations in that step.
    """

    module = "graph_timeline.js"

    def __init__(self, runs: Mapping[str, tuple[Trace, int]], *, step: int = TICKS, label: str = "One step on the machine"):
        check(bool(runs), "runs", dict(runs), "at least one", "record a step with llm.trace(profile=True)")
        self.runs = dict(runs)
        names: dict[str, int] = {}
        packed = [_packed(name, trace, index, names) for name, (trace, index) in self.runs.items()]
        self._ends = {run["name"]: run["end"] * RESOLUTION for run in packed}
        kinds = [[kind, theme.GREY if hue is None else theme.HUES[hue]] for kind, _, hue in KINDS]
        super().__init__({"runs": packed, "names": [[name, kind_of(name)] for name in names], "kinds": kinds, "ticks": TICKS,
                          "nanoseconds": round(RESOLUTION * 1e9)}, label=label, step=step)

    def summary(self) -> str:
        runs = ", ".join(f"{name} {end * 1e3:.2f} ms" for name, end in self._ends.items())
        return f"{self.label}: {runs}. Run this cell in JupyterLab to zoom and to point at kernels."

    def figure(self) -> Figure:
        return plot_gpu_timeline(self.runs)


def _packed(name: str, trace: Trace, index: int, names: dict[str, int]) -> dict[str, Any]:
    """One run: lanes of [start, duration, name's place in `names`], in units of RESOLUTION since the step began."""
    record = trace[index]
    launches, work = operations_of(trace, record)
    check(bool(work), f"operations of step {record.step} in {name!r}", 0, "at least one", "record with llm.trace(profile=True)")

    def units(seconds: float) -> int:
        return round(seconds / RESOLUTION)

    def lane(title: str, kind: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
        return {"name": title, "kind": kind, "ops": [[units(o["time"] - record.time), units(o["duration"]),
                                                      names.setdefault(o["name"], len(names))] for o in operations]}

    tracks = dict.fromkeys(o["track"] for o in work)
    end = max(record.duration, max(o["time"] + o["duration"] for o in work) - record.time)
    phases = [[phase, units(at - record.time), units(duration)] for phase, (at, duration) in record.phases.items()]
    return {"name": name, "step": record.step, "end": units(end), "busy": units(busy_seconds(work)), "phases": phases,
            "lanes": [*([lane("launches", "launches", launches)] if launches else []),
                      *(lane(track, "device", [o for o in work if o["track"] == track]) for track in tracks)]}
