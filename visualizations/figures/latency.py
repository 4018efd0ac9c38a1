"""Latency: how long until the first token, and from one token to the next."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check
from visualizations import theme

CROWDED = 0.16  # of the axis: two marks that are nearer leave no room for a label between them


def trace_latencies(trace: Trace) -> dict[str, list[float]]:
    """Seconds: {"time to first token": one per request that arrived during the trace, "between tokens": one per later token}.
    """
    arrivals = trace.meta.get("arrivals", {})
    last: dict[int, float] = {}
    first, between = [], []
    for record in trace:
        now = record.time + record.duration
        for seq_id in record.tokens:
            if seq_id in last:
                between.append(now - last[seq_id])
            elif arrivals.get(seq_id, -1) >= 0:
                first.append(now - arrivals[seq_id])
            last[seq_id] = now
    return {"time to first token": first, "between tokens": between}


def _percentile(values: NDArray[Any], share: float) -> float:
    """The smallest of the sorted `values` that at least this share of them does not exceed."""
    return float(values[min(len(values) - 1, int(np.ceil(share * len(values))) - 1)])


@theme.in_both_modes
def plot_latencies(latencies: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Figure:
    """A curve for each list of latencies: which share of them was shorter than that. Dots at the median and the 99th
    percentile.

    latencies: {name: seconds}, as `trace_latencies` gives, or one entry for each of several runs. Log axis, milliseconds.
    """
    given = {name: np.sort(np.asarray(values, dtype=float)) * 1e3 for name, values in latencies.items() if len(values)}
    check(bool(given), "latencies", dict(latencies), "at least one number", "record a trace in which tokens were drawn")
    fig, ax = theme.canvas(ax, 9, 3.4)
    m = theme.mode()
    words = []
    low, high = min(v[0] for v in given.values()), max(v[-1] for v in given.values())
    for place, (name, values) in enumerate(given.items()):
        colour = theme.HUES[place % len(theme.HUES)]
        shares = np.arange(1, len(values) + 1) / len(values)
        ax.step(np.append(values[0], values), np.append(0, shares), where="post", color=colour, linewidth=2,
                linestyle=("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))[place % 4], gid=f"curve-{name}",
                label=f"{name} ({len(values):,})")
        for share, marker in ((0.5, "o"), (0.99, "D")):
            value = _percentile(values, share)
            # A label stands right of its mark, unless the next mark is there already.
            later = [other for other in (_percentile(v, share) for v in given.values()) if other > value]
            crowded = bool(later) and np.log(min(later) / value) < CROWDED * np.log(high * 1.9 * 1.4 / low)
            ax.plot(value, share, marker=marker, markersize=6, color=colour, markeredgecolor=m.paper,
                    gid=f"p{share * 100:.0f}-{name}")
            shown = f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
            ax.annotate(shown, (value, share), (-7 if crowded else 7, -11 if share > 0.9 else 0), textcoords="offset points",
                        ha="right" if crowded else "left", fontsize=9, color=m.ink, va="center", zorder=4,
                        path_effects=[withStroke(linewidth=3, foreground=m.paper)])
        words.append(f"{name} {np.median(values):.3g} ms")
    ax.set(xscale="log", xlabel="milliseconds", ylabel="share of them this short", ylim=(0, 1.04))
    ax.set_xlim(low / 1.4, high * 1.9)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if high / low < 8 else ""))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    theme.title(ax, "How long readers wait",
                f"Circles: the median ({'; '.join(words)}). Diamonds: 99 of 100 are no longer than that.")
    return fig
