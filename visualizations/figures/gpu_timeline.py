"""One step on the machine: what the host launches, and what the GPU does meanwhile."""

import re
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check
from visualizations import theme

HEIGHT = 0.66
# Calls that hand the device work. Others on the host wait for it, ask about it or note a time: they launch nothing.
LAUNCH = re.compile(r"launch|memcpy|memset", re.IGNORECASE)


@theme.in_both_modes
def plot_gpu_timeline(runs: Mapping[str, tuple[Trace, int]], *, within: float | None = None,
                      ax: Axes | None = None) -> Figure:
    """A pair of lanes for each run, on one time axis: the host's launches above, the device's work below.

    runs: {name: (trace recorded with profile=True, index of the record)}, such as the same decode step run eagerly and as
    a CUDA graph. A trace recorded without a GPU has operators instead of kernels, and one lane. within: seconds; not the
    whole step, but so much from the middle of each run's work, on one axis, so that single kernels can be told apart.
    Raises ValueError for a trace without operations in that step, and for a time of 0 or less.
    """
    check(within is None or within > 0, "within", within, "more than 0 seconds", "leave it out to see the whole step")
    fig, ax = theme.canvas(ax, 10.4, 1.15 * len(runs) + 1.7)
    m = theme.mode()
    lanes: list[Any] = []
    longest, words = 0.0, []
    drawn: list[tuple[PatchCollection, list[dict[str, Any]]]] = []
    for name, (trace, index) in runs.items():
        record = trace[index]
        launches, work = operations_of(trace, record)
        check(bool(work), f"operations of step {record.step} in {name!r}", 0, "at least one",
              "record with llm.trace(profile=True)")
        end = max(record.duration, max(o["time"] + o["duration"] for o in work) - record.time)
        begin, launched = record.time, bool(launches)
        if within is not None:
            begin = sorted(o["time"] for o in work)[len(work) // 2]
            launches, work = (_cut(operations, begin, begin + within) for operations in (launches, work))
            end = within
        longest = max(longest, end)
        device = "operators" if work[0]["track"].startswith("CPU") else "GPU"
        # Launches are a lane of their own: a graph's is one call for all its kernels.
        for kind, operations, colour in (("launches", launches, theme.GREY), (device, work, theme.HUES[0])):
            if operations or (within is not None and launched):
                boxes = [Rectangle(((o["time"] - begin) * 1e3, -len(lanes) - HEIGHT / 2), o["duration"] * 1e3, HEIGHT)
                         for o in operations]
                drawn.append((PatchCollection(boxes, facecolor=colour, gid=f"{kind}-{name}"), operations))
                ax.add_collection(drawn[-1][0])
                if not operations:
                    ax.text(end * 10, -len(lanes), "no launch in this time", va="center", fontsize=9, color=m.muted)
                lanes.append(f"{name}: {kind}")
        what, busy = "kernels" if device == "GPU" else "operators", busy_seconds(work)
        words.append(f"{name}: {len(work)} {what}, busy {busy / end:.0%} of {end * 1e3:.2f} ms")
        if within is not None:
            continue
        top = -len(lanes) + (2.5 if launches else 1.5)
        ax.plot([end * 1e3] * 2, [-len(lanes) + 0.5, top], color=m.ink, linewidth=1.1, gid=f"end-{name}")
        ax.annotate(f"{end * 1e3:.2f} ms", (end * 1e3, -len(lanes) + 1), (5, 0), textcoords="offset points", va="center",
                    fontsize=9.5, color=m.ink, fontweight="bold")
    ax.set_yticks([-i for i in range(len(lanes))], lanes, color=m.ink)
    ax.tick_params(axis="y", length=0)
    reach = longest * 1e3 * (1.12 if within is None else 1.0)
    ax.set(xlabel="milliseconds" + (" since the step began" if within is None else ""), xlim=(0, reach),
           ylim=(-len(lanes) + 0.4, 0.6))
    for collection, operations in drawn:
        # An edge of paper parts neighbours. Around a box that is hardly wider than the edge it would leave nothing to see.
        shortest = min((o["duration"] for o in operations), default=1.0) * 1e3 / reach * 600  # points, about
        collection.set(edgecolor=m.paper if shortest > 1 else collection.get_facecolor(), linewidth=0.25)
    theme.title(ax, "One step on the machine" if within is None else f"{within * 1e3:g} ms of each step, from its middle",
                "; ".join(words) + ".")
    return fig


def _cut(operations: list[dict[str, Any]], start: float, end: float) -> list[dict[str, Any]]:
    """What ran within [start, end), each cut to it."""
    return [o | {"time": max(o["time"], start), "duration": min(o["time"] + o["duration"], end) - max(o["time"], start)}
            for o in operations if o["time"] < end and o["time"] + o["duration"] > start]


def operations_of(trace: Trace, record: StepRecord) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was launched while the step's own launch phase ran, and the device's work from then until the next step's."""
    later = [r.phases["launch"][0] for r in trace if r.step == record.step + 1 and "launch" in r.phases]
    start, end = record.phases["launch"][0], later[0] if later else record.time + record.duration
    inside = [o for o in trace.operations if start <= o["time"] < end]
    calls = [o for o in inside if o["track"] == "launches"]
    return [o for o in calls if LAUNCH.search(o["name"])], [o for o in inside if o["track"] != "launches"]


def busy_seconds(operations: list[dict[str, Any]]) -> float:
    """Seconds in which at least one of them ran."""
    total, until = 0.0, float("-inf")
    for o in sorted(operations, key=lambda o: o["time"]):
        end = o["time"] + o["duration"]
        total += max(0.0, end - max(until, o["time"]))
        until = max(until, end)
    return total
