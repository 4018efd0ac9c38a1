"""The online softmax at work: how sums over earlier keys are rescaled when a higher score comes."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_online_softmax(scores: Sequence[float], tile: int, *, seq_id: int = 0, ax: Axes | None = None) -> Figure:
    """A row for each tile of keys: the weights e^(score - highest so far) of all keys taken in by then.

    scores: one query's, a list of numbers. tile: keys taken in at a time. Dark: the tile that has just come; light: those
    before it, whose sums were multiplied by the fade. Raises ValueError without scores, for one that is no finite number,
    or for a tile below 1.
    """
    scores = [float(s) for s in scores]
    check(bool(scores) and all(map(math.isfinite, scores)), "scores", scores, "one or more finite numbers",
          "leave out masked keys")
    check(tile >= 1, "tile", tile, "1 or more keys", "take in at least one key at a time")
    starts = range(0, len(scores), tile)
    fig, ax = theme.canvas(ax, 9.6, min(6.0, 1.5 + 0.85 * len(starts)))
    m, highest, changes = theme.mode(), -math.inf, -1
    for row, start in enumerate(starts):
        taken = scores[:start + tile]
        before, highest = highest, max(taken)
        changes += highest > before
        weights = [math.exp(s - highest) for s in taken]
        ax.axhline(-row, color=m.line, linewidth=0.8)
        for key, weight in enumerate(weights):
            new = key >= start
            ax.add_patch(Rectangle((key + 0.1, -row), 0.8, 0.78 * weight, linewidth=0, gid=f"{'new' if new else 'old'}-{row}",
                                   facecolor=theme.prompt_colour(seq_id) if new else theme.decode_colour(seq_id)))
        rescale = f"rescale × {math.exp(before - highest):.2f}   " if row else ""
        ax.text(len(scores) + 0.4, -row + 0.3, f"{rescale}highest {highest:.2f}   total {sum(weights):.2f}", fontsize=9,
                color=m.ink, va="center")
    ax.set_yticks([-row + 0.3 for row in range(len(starts))], [f"after tile {row}" for row in range(len(starts))], color=m.ink)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="key", ylabel="weight (full height: 1)", xlim=(0, len(scores) * 1.62 + 1), ylim=(-len(starts) + 0.9, 1.0))
    ax.set_xticks([key + 0.5 for key in range(0, len(scores), tile)], [str(key) for key in range(0, len(scores), tile)])
    ax.spines["left"].set_visible(False)
    theme.title(ax, "Softmax, one tile at a time",
                f"Dark: just taken in. A new highest score came {changes} {'time' if changes == 1 else 'times'}, and "
                "the sums were rescaled.")
    return fig
