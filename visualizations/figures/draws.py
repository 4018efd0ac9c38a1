"""Where a draw's chance comes from: the wheel, unrolled, and the bits of a hash beside the numbers that went in."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme

NAMED = 0.05  # of the wheel: a stretch that has room for its token's text


@theme.in_both_modes
def plot_wheel(probs: Sequence[float], decode: Callable[[int], str], spins: Sequence[float], *,
               ax: Axes | None = None) -> Figure:
    """The wheel of `spin`: stretches in the order of the token ids, and where each of `spins` (in [0, 1)) falls.

    Tokens with more than one in a hundred have a colour; all others are grey. Raises ValueError when probs do not add up to 1.
    """
    p = np.asarray(probs, dtype=float)
    check(abs(float(p.sum()) - 1) < 1e-3, "probs", float(p.sum()), "adding up to 1", "take a softmax")
    fig, ax = theme.canvas(ax, 9.5, 1.9)
    ends = p.cumsum()
    ax.barh(0, 1, color=theme.mode().free)
    for place, token in enumerate(np.flatnonzero(p > 0.01).tolist()):
        colour = theme.sequence_colour(place)
        ax.barh(0, p[token], left=ends[token] - p[token], color=colour)
        if p[token] > NAMED:
            ax.text(ends[token] - p[token] / 2, 0, decode(token), ha="center", va="center", color=theme.text_on(colour),
                    fontsize=8.5, parse_math=False)
    ax.plot(list(spins), [-0.55] * len(spins), "^", color=theme.mode().ink, markersize=6)
    ax.set(xlabel="probability, added up in the order of the token ids", yticks=[], xlim=(0, 1), ylim=(-0.75, 0.5))
    theme.title(ax, "The wheel, unrolled",
                f"Colours: tokens with more than one in a hundred; grey: all the others. Arrows: {len(spins)} spins.")
    return fig


@theme.in_both_modes
def plot_bits(before: Sequence[int], after: Sequence[int], *, bits: int = 32, names: tuple[str, str] = ("in", "out"),
              ax: Axes | None = None) -> Figure:
    """Two columns of numbers in binary, a row per number: what goes into a hash, and what comes out of it."""
    check(len(before) == len(after) > 0, "after", len(after), f"as many as before ({len(before)}), and one at least",
          "pass a result per number")
    fig, ax = theme.canvas(ax, 9, 3.4)
    shifts = np.arange(bits - 1, -1, -1)
    tables = [(np.asarray(numbers, dtype=np.int64)[:, None] >> shifts & 1).astype(float) for numbers in (before, after)]
    gap = np.full((len(before), 3), np.nan)
    ax.imshow(np.concatenate([tables[0], gap, tables[1]], 1), cmap="Blues", vmin=-0.15, vmax=1.4, aspect="auto")
    ax.set_xticks([bits / 2 - 0.5, bits * 1.5 + 2.5], list(names), color=theme.mode().ink)
    ax.set(ylabel=names[0].split(",")[0])
    ax.tick_params(axis="x", length=0)
    theme.title(ax, "What goes in, and what comes out",
                "A row is a number in binary. Left: neighbours are much alike. Right: no pattern is left.")
    return fig
