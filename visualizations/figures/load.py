"""A load test: when each request came, and how long its reader waited."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from nanovllm.utils.checks import check
from visualizations import theme

COLUMNS = ("arrival", "ttft", "latency")


@theme.in_both_modes
def plot_load_test(requests: Mapping[str, NDArray[np.float64]], *, failed: Sequence[float] = (),
                   limits: Mapping[str, float] | None = None, title: str = "A load test", ax: Axes | None = None) -> Figure:
    """Time to the first token and to the last, for each request at the time of its arrival. Log axis, milliseconds.

    requests: columns "arrival", "ttft" and "latency" in seconds, as a load test's report and `FleetReport.requests` have
    them. failed: arrivals of requests that failed. limits: milliseconds of "ttft" and "e2el", drawn as lines.
    """
    arrival, ttft, latency = (np.asarray(requests[name], dtype=float) for name in COLUMNS)
    check(len(arrival) > 0, "requests", len(arrival), "at least one that was answered", "look at the reasons of the failures")
    fig, ax = theme.canvas(ax, 9, 4.2)
    m, hue = theme.mode(), theme.HUES[0]
    light = theme.decode_colour(0)
    size = 26 if len(arrival) <= 300 else 9
    if len(arrival) <= 300:  # more lines than that would be a surface
        ax.vlines(arrival, 1e3 * ttft, 1e3 * latency, color=light, linewidth=1.2, alpha=0.6, zorder=1)
    ax.scatter(arrival, 1e3 * latency, s=size, color=light, edgecolor=hue, linewidth=0.6, zorder=2, gid="e2el",
               label="last token")
    ax.scatter(arrival, 1e3 * ttft, s=size, color=hue, edgecolor=m.paper, linewidth=0.4, zorder=3, gid="ttft",
               label="first token")
    low, high = 1e3 * ttft.min() / 1.6, 1e3 * latency.max() * 1.6
    for name, text in (("ttft", "first token"), ("e2el", "last token")):
        if limits and name in limits:
            ax.axhline(limits[name], color=m.muted, linewidth=1, linestyle=(0, (5, 3)), zorder=0, gid=f"limit-{name}")
            ax.annotate(f"limit, {text}: {limits[name]:g} ms", (0.005, limits[name]), (0, 3), textcoords="offset points",
                        xycoords=("axes fraction", "data"), color=m.ink, fontsize=9, zorder=5,
                        path_effects=[withStroke(linewidth=3, foreground=m.paper)])
            low, high = min(low, limits[name] / 1.4), max(high, limits[name] * 1.8)
    if len(failed):
        ax.scatter(failed, np.full(len(failed), high), s=36, marker="x", color=theme.HUES[1], linewidth=1.8, zorder=4,
                   gid="failed", label=f"failed ({len(failed):,})")
        high *= 1.5
    ax.set(yscale="log", ylim=(low, high), xlabel="seconds since the run began: planned arrival", ylabel="milliseconds")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:,g}" if high / low < 300 and f"{y:.0e}"[0] in "25" else ""))
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    first, last = (f"{_shown(np.median(values))}, p99 {_shown(np.percentile(values, 99))}" for values in (ttft, latency))
    theme.title(ax, title, f"Median to the first token {first}; to the last {last}. A rising cloud is a queue.")
    return fig


def _shown(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
