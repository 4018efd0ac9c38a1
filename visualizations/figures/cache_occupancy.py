"""Cache occupancy: what the physical blocks are doing, step by step."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanovllm.tracing.trace import Trace
from visualizations import theme

STATES = (("s", "shared"), ("u", "in use"), ("c", "cached, free to take"), ("f", "free"))


@theme.in_both_modes
def plot_cache_occupancy(trace: Trace, *, ax: Axes | None = None) -> Figure:
    """Physical blocks by state after each step, stacked; together they are the whole cache."""
    fig, ax = theme.canvas(ax, 10, 2.7)
    m = theme.mode()
    steps = np.array([r.step for r in trace])
    edges = np.append(steps, steps[-1] + 1) - 0.5
    grey = theme.GREY
    style: dict[str, dict[str, Any]] = {"s": dict(facecolor=grey, edgecolor=m.paper, hatch=theme.SHARED_HATCH, linewidth=0),
             "u": dict(facecolor=grey, edgecolor=grey, linewidth=0),
             "c": dict(facecolor=m.paper, edgecolor=m.muted, linewidth=1.2),
             "f": dict(facecolor=m.free, edgecolor=m.free, linewidth=0)}
    below = np.zeros(len(steps))
    occurring = {letter for record in trace for letter in record.blocks}
    for letter, label in STATES:
        if letter not in occurring:
            continue
        above = below + np.array([r.blocks.count(letter) for r in trace])
        ax.stairs(above, edges, baseline=below, fill=True, label=label, **style[letter])
        below = above
    ax.set(xlabel="step", ylabel="blocks", xlim=(edges[0], edges[-1]), ylim=(0, below.max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.02), reverse=True)
    most = max(r.num_blocks_in_use for r in trace)
    theme.title(ax, "The cache, step by step", f"At most {most} of {int(below.max())} blocks are held at once. "
                + ("What a finished sequence lets go stays readable until its place is needed." if "c" in occurring else
                   "Where the grey steps down, a sequence ended or was preempted."))
    return fig
