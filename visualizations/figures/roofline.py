"""The roofline: what bounds a piece of work, the device's arithmetic or its memory."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured piece of work: floating-point operations, bytes moved to and from memory, and seconds.

    floor: the least seconds, where the work has parts that follow one another, each with a roof of its own. None: the roof's.
    """

    name: str
    flops: float
    bytes: float
    seconds: float
    floor: float | None = None


@theme.in_both_modes
def plot_roofline(points: Iterable[Measured], *, peak_flops: float, bandwidth: float, device: str = "",
                  ax: Axes | None = None) -> Figure:
    """Achieved FLOP/s over arithmetic intensity, both log, under the roof of the device (Williams et al. 2009).

    peak_flops: FLOP/s of the device in the dtype used. bandwidth: bytes/s of its memory, best as measured by a copy.
    Each point is labelled with its share of the roof above it, or with its floor's share of its time. Raises
    ValueError for a point above the roof: its count of operations or bytes is wrong.
    """
    points = list(points)
    fig, ax = theme.canvas(ax, 9, 4.3)
    m = theme.mode()
    ridge = peak_flops / bandwidth
    unit, size = ("TFLOP/s", 1e12) if peak_flops >= 1e12 else ("GFLOP/s", 1e9)
    intensities = [p.flops / p.bytes for p in points]
    low, high = min([ridge / 30, *(i / 3 for i in intensities)]), max([ridge * 30, *(i * 6 for i in intensities)])
    x = np.array([low, ridge, high])
    ax.plot(x, np.minimum(x * bandwidth, peak_flops) / size, color=m.ink, linewidth=1.8, gid="roof")
    ax.fill_between([low, ridge], [low * bandwidth / size, peak_flops / size], 1e-9, color=m.free, linewidth=0, zorder=0)
    for place, (point, intensity) in enumerate(zip(points, intensities)):
        achieved, roof = point.flops / point.seconds, min(intensity * bandwidth, peak_flops)
        check(achieved <= roof * 1.02, f"FLOP/s of {point.name!r}", f"{achieved:.3g}", f"at most the roof there, {roof:.3g}",
              "count its operations and bytes again, or the device's limits")
        share = achieved / roof if point.floor is None else point.floor / point.seconds
        colour = theme.HUES[place % len(theme.HUES)]
        ax.plot([intensity] * 2, [achieved / size, roof / size], color=colour, linewidth=1, linestyle=(0, (2, 2)))
        ax.plot(intensity, achieved / size, marker="osD^vP*X"[place % 8], markersize=8, color=colour, markeredgecolor=m.paper,
                gid=f"point-{point.name}")
        ax.annotate(f"{point.name}: {share:.0%}", (intensity, achieved / size), (8, -4), textcoords="offset points",
                    fontsize=9, color=m.ink, va="top")
    lowest = min([low * bandwidth, *(p.flops / p.seconds for p in points)]) / size
    ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte moved)", ylabel=unit,
           xlim=(low, high), ylim=(lowest / 2.5, peak_flops / size * 2.2))
    ax.annotate(_rate(peak_flops, "FLOP/s"), (high, peak_flops / size), (-2, 4), textcoords="offset points", ha="right",
                fontsize=9, color=m.ink)
    ax.annotate(_rate(bandwidth, "B/s"), (np.sqrt(low * ridge), np.sqrt(low * ridge) * bandwidth / size), (-8, 6),
                textcoords="offset points", ha="right", fontsize=9, color=m.ink)
    bound = sum(i < ridge for i in intensities)
    theme.title(ax, "Roofline" + (f" of {device}" if device else ""),
                f"Under the slope memory is the limit ({bound} of {len(points)} points), under the flat roof arithmetic. "
                + ("Per cent: of the roof above." if any(p.floor is None for p in points) else
                   "Per cent: the floor's share of the time."))
    return fig


def _rate(per_second: float, unit: str) -> str:
    """Three digits and the prefix that leaves one to three of them before the point."""
    prefix, size = next(((p, s) for p, s in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if per_second >= s), ("", 1.0))
    return f"{per_second / size:.3g} {prefix}{unit}"
