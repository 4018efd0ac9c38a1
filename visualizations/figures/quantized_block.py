"""A block of quantized weights: where each weight was, and the level that four bits can name."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_quantized_block(was: Sequence[float], becomes: Sequence[float], *, scale: float, least: float, bits: int = 4,
                         ax: Axes | None = None) -> Figure:
    """A line for each of the 2 ** bits levels, `least` + i * `scale`; a ring for each weight, and a stroke to its level.

    was, becomes: the weights of one block before and after, in order. Raises ValueError for lists of different lengths, and
    for a scale that is not positive.
    """
    before, after = np.asarray(was, dtype=float), np.asarray(becomes, dtype=float)
    check(before.shape == after.shape and before.ndim == 1 and len(before) > 0, "len(becomes)", after.shape,
          f"{before.shape}, one per weight", "pass the same block before and after")
    check(scale > 0, "scale", scale, "greater than 0", "pass the distance of two levels")
    fig, ax = theme.canvas(ax, 10, 4.2)
    m, levels = theme.mode(), 2 ** bits
    for level in range(levels):
        ax.axhline(least + level * scale, color=m.line, linewidth=0.9, zorder=1, gid=f"level-{level}")
    places = np.arange(len(before))
    ax.vlines(places, np.minimum(before, after), np.maximum(before, after), color=theme.HUES[1], linewidth=1.6, zorder=2,
              gid="moved", label="rounding")
    ax.plot(places, after, linestyle="none", marker="_", markersize=9, markeredgewidth=2, color=theme.HUES[1], zorder=3,
            gid="becomes", label="is now")
    # Rings, since a dot would cover the stroke to a level that is half a step away at most.
    ax.plot(places, before, linestyle="none", marker="o", markersize=5.5, markerfacecolor="none", markeredgewidth=1.5,
            color=theme.HUES[0], zorder=4, gid="was", label="was")
    ax.set(xlabel="number in the block", ylabel="weight", xlim=(-0.8, len(before) - 0.2))
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.02), reverse=True)
    furthest = float(np.abs(before - after).max())
    theme.title(ax, f"{len(before)} weights, {levels} levels", f"Grey: the levels that {bits} bits can name. Furthest off: "
                f"{furthest / scale:.2f} of the distance between two of them.")
    return fig
