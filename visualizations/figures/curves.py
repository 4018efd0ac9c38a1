"""What turns with a knob: a line for each way of doing it, over the settings that were tried."""

from collections.abc import Collection, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanovllm.utils.checks import check
from visualizations import theme

NEAREST = 0.04  # of the axis: two ticks whose numbers still stand apart


@theme.in_both_modes
def plot_curves(curves: Mapping[str, Mapping[float, float]], *, knob: str, outcome: str, title: str, caption: str,
                log: bool = False, log_outcome: bool = False, at_settings: bool = False, rings: Collection[str] = (),
                level: float | None = None, ax: Axes | None = None) -> Figure:
    """A line with a mark at each setting, its name at its end.

    curves: {name: {setting: outcome}}. knob, outcome: what the axes show, with units. log: settings by doublings, each
    written out. log_outcome: outcomes by powers of ten, for curves of very different heights. at_settings: ticks stand at the
    settings that were tried, but for those that are too near to the one before. rings: names drawn as rings without a line,
    for what lies on another curve and would hide it. level: an outcome to compare with, a dashed line. Raises ValueError
    without curves, for an empty one, and for an outcome of 0 or less on a log axis.
    """
    check(bool(curves) and all(curves.values()), "curves", {name: dict(c) for name, c in curves.items()},
          "one point or more in each",
          "leave out a curve that was not measured")
    if log_outcome:
        least = min(y for curve in curves.values() for y in curve.values())
        check(least > 0, "smallest outcome", least, "above 0 on a log axis", "leave out log_outcome")
    fig, ax = theme.canvas(ax, 9, 2.9)
    settings = sorted({x for curve in curves.values() for x in curve})
    highest = max(y for curve in curves.values() for y in curve.values())
    if log:
        ax.set_xscale("log", base=2)
        ax.set_xticks(settings, [f"{x:g}" for x in settings])
        ax.minorticks_off()
    elif at_settings:
        ax.set_xticks(_apart(settings, NEAREST * (settings[-1] - settings[0])), minor=False)
        ax.xaxis.set_major_formatter("{x:,g}")
    elif all(isinstance(x, int) for x in settings):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if level is not None:  # only as far as the curves: behind them stand their names
        ax.plot([settings[0], settings[-1]], [level] * 2, color=theme.mode().ink, linewidth=1.1, linestyle=(0, (5, 3)),
                zorder=0, gid="level")
    ends: dict[str, tuple[float, float, int]] = {}
    for place, (name, curve) in enumerate(curves.items()):
        xs = sorted(curve)
        (line,) = ax.plot(xs, [curve[x] for x in xs], color=theme.sequence_colour(place), linewidth=2, marker="o",
                          markersize=4.5, gid=name)
        if name in rings:
            line.set(linestyle="none", markersize=10, markerfacecolor="none", markeredgewidth=2)
        ends[name] = xs[-1], curve[xs[-1]], place
    lowest = min(y for curve in curves.values() for y in curve.values())
    # Names that would lie on each other move apart, in the order of their lines: by a share of the axis, linear or log.
    spread = (highest / lowest) ** 0.1 if log_outcome else highest * 0.09
    at = 0.0 if log_outcome else -float(spread)
    for name, (x, y, place) in sorted(ends.items(), key=lambda end: end[1][1]):
        at = max(at * spread if log_outcome else at + spread, y)
        ax.annotate(name, (x, at), (8, 0), textcoords="offset points", va="center", fontsize=9.5, annotation_clip=False,
                    color=theme.sequence_colour(place), fontweight="bold", parse_math=False)
    ax.set(xlabel=knob, ylabel=outcome)
    if log_outcome:
        ax.set(yscale="log", ylim=(lowest / 1.3, max(highest, at) * 1.3))
        ax.yaxis.set_major_formatter("{x:,g}")
    else:
        ax.set(ylim=(0, max(highest * 1.08, at * 1.02) or 1))
    theme.title(ax, title, caption)
    return fig


def _apart(settings: list[float], least: float) -> list[float]:
    """The settings without those that are nearer than `least` to the one kept before."""
    kept = settings[:1]
    for x in settings[1:]:
        if x - kept[-1] >= least:
            kept.append(x)
    return kept
