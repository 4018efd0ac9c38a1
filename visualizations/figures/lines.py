"""Lines over a running number: tokens, steps, ranks, milliseconds; the plain picture of a chapter's own measurements."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanovllm.utils.checks import check
from visualizations import theme

Log = Literal["", "x", "y", "xy"]


@theme.in_both_modes
def plot_lines(lines: Mapping[str, Sequence[float]], *, over: str, outcome: str, title: str, caption: str,
               xs: Sequence[float] | None = None, words: Sequence[str] | None = None, form: str = "steps", log: Log = "",
               bars: str | None = None, diagonal: bool = False, least: float | None = None,
               ax: Axes | None = None) -> Figure:
    """One line per name over 0, 1, 2, … or over `xs`.

    lines: {name: values}. over, outcome: what the axes show, with units. words: a label for each place instead of its number.
    form: "steps", "line" or "dots". log: the axes that are logarithmic. bars: the name that is drawn as bars. diagonal: a thin
    line where both axes are equal. least: where the vertical axis begins. Raises ValueError without lines, for an empty one,
    and for words that do not fit.
    """
    check(bool(lines) and all(len(values) for values in lines.values()), "lines", {n: len(v) for n, v in lines.items()},
          "one value or more in each", "leave out a line that has none")
    longest = max(len(values) for values in lines.values())
    check(words is None or len(words) == longest, "words", len(words or ()), f"one for each of {longest} places",
          "pass a word per value")
    fig, ax = theme.canvas(ax, 9.5, 2.9)
    for place, (name, values) in enumerate(lines.items()):
        at = list(range(len(values))) if xs is None else list(xs)[:len(values)]
        colour = theme.sequence_colour(place)
        if name == bars:
            ax.bar(at, values, 0.8, color=colour, label=name)
        elif form == "dots":
            ax.plot(at, values, "o", color=colour, markersize=4, label=name)
        elif form == "line":
            ax.plot(at, values, color=colour, linewidth=2, label=name)
        else:
            ax.step(at, values, where="mid", color=colour, linewidth=2, label=name)
    if xs is None:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not log and all(isinstance(value, int) for values in lines.values() for value in values):
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    if diagonal:
        ax.axline((0, 0), slope=1, color=theme.mode().line, zorder=0)
    if words is not None:
        ax.set_xticks(range(longest), list(words), rotation=60, fontsize=8.5, parse_math=False)
    ax.set(xlabel=over, ylabel=outcome)
    if least is not None:
        ax.set_ylim(bottom=least)
    if len(lines) > 1:
        low, high = ax.get_ylim()
        room = 1.28  # for the legend above the lines
        ax.set_ylim(low, high * (high / low) ** (room - 1) if "y" in log else low + room * (high - low))
        if "y" in log:  # no tick in that room, where a probability would be above 1
            ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= high])
            ax.set_yticks([tick for tick in ax.get_yticks(minor=True) if low <= tick <= high], minor=True)
        theme.legend(ax, loc="upper right", ncols=len(lines))
    theme.title(ax, title, caption)
    return fig


@theme.in_both_modes
def plot_matrices(matrices: Mapping[str, object], *, title: str, caption: str, ax: Axes | None = None) -> Figure:
    """Matrices of one height side by side, each under its name with a frame; the number stands in a cell where there is room.

    matrices: {name: [rows, columns] of numbers, NaN where there is none}. Orange is below zero, purple above. Raises ValueError
    for none, or for different heights.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in matrices.items()}
    check(len({a.shape[0] for a in arrays.values()}) == 1, "matrices", {n: a.shape for n, a in arrays.items()},
          "one or more, of one height", "leave out what does not belong")
    fig, ax = theme.canvas(ax, 9.5, 2.7)
    most = max(float(np.nanmax(np.abs(a), initial=0)) for a in arrays.values()) or 1
    left, ticks, m = 0.0, [], theme.mode()
    for a in arrays.values():
        rows, columns = a.shape
        ax.imshow(a, cmap="PuOr", vmin=-1.4 * most, vmax=1.4 * most, extent=(left, left + columns, rows, 0))
        ax.plot([left, left + columns, left + columns, left, left], [0, 0, rows, rows, 0], color=theme.GREY, linewidth=1)
        for row, column in np.argwhere(np.isfinite(a)) if a.size <= 60 else []:
            ax.text(left + column + 0.5, row + 0.5, f"{a[row, column]:.3g}", ha="center", va="center", fontsize=8,
                    color="#ffffff" if abs(a[row, column]) > 0.8 * most else "#1b1e22", parse_math=False)
        ticks.append(left + columns / 2)
        left += columns + 1
    ax.set_xticks(ticks, list(arrays), color=m.ink)
    ax.set(yticks=[], xlim=(-0.2, left - 0.8), ylim=(next(iter(arrays.values())).shape[0] + 0.2, -0.2))
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    theme.title(ax, title, caption)
    return fig
