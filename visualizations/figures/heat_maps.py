"""Matrices as shades: shares of attention, norms of cached keys."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_heat_maps(matrices: Mapping[str, ArrayLike], *, xlabel: str, ylabel: str, title: str, caption: str,
                   rows: Sequence[str] = (), outlines: Sequence[tuple[int, int, int, int]] = (), highest: float | None = None,
                   key: str = "", ax: Axes | None = None) -> Figure:
    """The matrices side by side; the darker, the larger. NaN is left blank.

    matrices: {what stands above it: [rows, columns]}, all with as many rows. rows: a name for each. outlines: (row, column,
    height, width) of frames drawn on every matrix. highest: what full shade means; None takes the largest number of all.
    key: what the shades measure; a bar at the right then says which shade is how much. Raises ValueError without a
    matrix or when their rows differ.
    """
    arrays = {name: np.ma.masked_invalid(np.asarray(matrix, dtype=float)) for name, matrix in matrices.items()}
    check(bool(arrays) and all(a.ndim == 2 for a in arrays.values()) and len({a.shape[0] for a in arrays.values()}) == 1,
          "shapes of the matrices", {name: a.shape for name, a in arrays.items()}, "two dimensions and equally many rows",
          "pass matrices over the same rows")
    height = next(iter(arrays.values())).shape[0]
    gap = max(1.0, 0.12 * height)
    total = sum(a.shape[1] for a in arrays.values()) + gap * (len(arrays) - 1)
    fig, ax = theme.canvas(ax, 10, min(5.2, max(2.4, 8.0 * height / total + 1.4)))
    m, left = theme.mode(), 0.0
    ends = (theme.mix(m.paper, m.free, 0.6), theme.HUES[0], theme.mix(theme.HUES[0], m.ink, 0.55))
    shades = LinearSegmentedColormap.from_list("shares", [to_hex(colour) for colour in ends])
    most = highest if highest is not None else max(float(a.max()) for a in arrays.values())
    for name, a in arrays.items():
        shaded = ax.imshow(a, cmap=shades, vmin=0, vmax=most, extent=(left, left + a.shape[1], height, 0),
                           interpolation="nearest", aspect="auto", gid=f"map-{name}")
        for row, column, tall, wide in outlines:
            ax.add_patch(Rectangle((left + column, row), wide, tall, facecolor="none", edgecolor=theme.HUES[1], linewidth=2))
        if name:
            ax.text(left, -0.03 * height, name, fontsize=9.5, color=m.ink, va="bottom")
        left += a.shape[1] + gap
    if rows:
        ax.set_yticks([row + 0.5 for row in range(height)], list(rows), fontsize=8.5, parse_math=False)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, left - gap), ylim=(height, -0.12 * height if any(arrays) else 0))
    if len(arrays) > 1:
        ax.set_xticks([])
    if key:
        bar = fig.colorbar(shaded, ax=ax, fraction=0.03, pad=0.015, aspect=30)
        bar.set_label(key, color=m.muted)
        bar.ax.tick_params(colors=m.muted, labelsize=9, length=3)
        bar.outline.set_edgecolor(m.line)
    theme.title(ax, title, caption)
    return fig
