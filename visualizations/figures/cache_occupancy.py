"""Cache occupancy: what the physical blocks are doing, step by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check
from visualizations import theme

STATES = (("s", "shared"), ("u", "in use"), ("c", "cached, free to take"), ("f", "free"))


@theme.in_both_modes
def plot_cache_occupancy(trace: Trace, *, reserve: Sequence[int] | None = None, marks: Mapping[int, str] | None = None,
                         ax: Axes | None = None) -> Figure:
    """Physical blocks by state after each step, stacked; together they are the whole cache.

    reserve: blocks kept free after each step for those who run, one number per step; that part of the free ones is drawn
    on top of those in use, and where it ends in free blocks a newcomer may come in. marks: {step: what happened just before
    it}, an arrow from the words to the top of the blocks in use. Raises ValueError for another number of reserves than
    steps, and for a mark at a step that the trace does not have.
    """
    check(reserve is None or len(reserve) == len(trace), "len(reserve)", len(reserve or ()), f"{len(trace)}, one per step",
          "pass the reserve after each step of this trace")
    for step in marks or ():
        check(any(r.step == step for r in trace), "a marked step", step, f"{trace[0].step} to {trace[-1].step}",
              "mark a step of this trace")
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
    if reserve is not None:
        held = np.array([r.num_blocks_in_use for r in trace])
        ax.stairs(np.minimum(held + np.asarray(reserve), below), edges, baseline=held, fill=True, label="free, and reserved",
                  facecolor=m.free, edgecolor=theme.HUES[1], hatch="....", linewidth=0, gid="reserve")
    ax.set(xlabel="step", ylabel="blocks", xlim=(edges[0], edges[-1]), ylim=(0, below.max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    for record in trace:
        if marks and record.step in marks:
            at = record.step - 0.5
            ax.annotate(marks[record.step], (at, record.num_blocks_in_use), (at, 0.72 * below.max()),
                        ha="center" if edges[0] + 4 < record.step < edges[-1] - 4 else "left", va="center", fontsize=9,
                        color=m.ink, gid=f"mark-{record.step}", parse_math=False,
                        arrowprops=dict(arrowstyle="-|>", color=m.ink, linewidth=1.1))
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.02), reverse=True)
    if reserve is not None:
        theme.title(ax, "The cache and its reserve", "Dotted: kept for the next blocks of those who run. A newcomer must fit "
                    "into the plain grey above.")
        return fig
    most = max(r.num_blocks_in_use for r in trace)
    theme.title(ax, "The cache, step by step", f"At most {most} of {int(below.max())} blocks are held at once. "
                + ("What a finished sequence lets go stays readable until its place is needed." if "c" in occurring else
                   "Where the grey steps down, a sequence ended or was preempted."))
    return fig
