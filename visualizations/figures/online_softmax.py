"""The online softmax at work: how sums over earlier keys are rescaled when a higher score comes."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

TALL = 0.74  # of a row: the height of a weight of 1


@theme.in_both_modes
def plot_online_softmax(scores: Sequence[float], tile: int, *, seq_id: int = 0, names: Sequence[str] | None = None,
                        words: Sequence[str] | None = None, title: str = "Softmax, one tile at a time",
                        ax: Axes | None = None) -> Figure:
    """The scores with the highest so far (dashed), and below a row for each tile: the weights e^(score - highest so far)
    of all keys taken in by then.

    scores: one query's, a list of numbers. tile: keys taken in at a time. names: of the tiles, when they have better ones
    than their numbers. words: the text of each key; the last row then names the one with the largest share. Dark: the tile
    that has just come; light: those before it; outlined: how large those were before their sums were rescaled. Raises
    ValueError without scores, for one that is no finite number, for a tile below 1, and for another number of names than
    tiles.
    """
    scores = [float(s) for s in scores]
    check(bool(scores) and all(map(math.isfinite, scores)), "scores", scores, "one or more finite numbers",
          "leave out masked keys")
    check(tile >= 1, "tile", tile, "1 or more keys", "take in at least one key at a time")
    starts = range(0, len(scores), tile)
    names = [f"tile {row}" for row in range(len(starts))] if names is None else list(names)
    check(len(names) == len(starts), "len(names)", len(names), f"{len(starts)}, one per tile", "name every tile")
    fig, ax = theme.canvas(ax, 9.6, min(6.0, 2.2 + 0.72 * len(starts)))
    m, highest, changes = theme.mode(), -math.inf, -1
    _draw_scores(ax, scores, tile, seq_id)
    for row, start in enumerate(starts, 1):
        taken = scores[:start + tile]
        before, highest = highest, max(taken)
        changes += highest > before
        weights = [math.exp(s - highest) for s in taken]
        ax.axhline(-row, color=m.line, linewidth=0.8)
        for key, weight in enumerate(weights):
            new = key >= start
            gid = f"{'new' if new else 'old'}-{row - 1}"
            ax.add_patch(Rectangle((key + 0.1, -row), 0.8, TALL * weight, linewidth=0, gid=gid,
                                   facecolor=theme.prompt_colour(seq_id) if new else theme.decode_colour(seq_id)))
            if not new and highest > before:
                ax.add_patch(Rectangle((key + 0.1, -row), 0.8, TALL * math.exp(taken[key] - before), linewidth=0.9,
                                       facecolor="none", edgecolor=m.muted, gid=f"before-{row - 1}"))
        rescale = f"rescale × {math.exp(before - highest):.2f}   " if row > 1 else ""
        ax.text(len(scores) * 1.02 + 0.3, -row + 0.3, f"{rescale}highest {highest:.2f}   total {sum(weights):.2f}", fontsize=9,
                color=m.ink, va="center")
    if words is not None:
        most = max(range(len(scores)), key=scores.__getitem__)
        share = 1 / sum(math.exp(score - highest) for score in scores)
        left = most > len(scores) / 2  # on the side where the row has more room
        ax.text(most + (-0.2 if left else 1.2), -len(starts) + 0.86 * TALL, f"“{words[most].strip()}” {share:.0%}", va="center",
                ha="right" if left else "left", fontsize=9, fontweight="bold", color=m.ink, parse_math=False, gid="most")
    ax.set_yticks([-row + 0.35 for row in range(len(starts) + 1)], ["scores", *names], color=m.ink)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="key", ylabel="", xlim=(0, len(scores) * 1.64 + 1), ylim=(-len(starts) - 0.1, 1.0))
    ax.set_xticks([key + 0.5 for key in range(0, len(scores), tile)], [str(key) for key in range(0, len(scores), tile)])
    ax.spines["left"].set_visible(False)
    theme.title(ax, title, "Dark: just taken in. Dashed: the highest score so far. After the first tile it rose "
                f"{changes} {'time' if changes == 1 else 'times'}; outlines: the weights before they were rescaled.")
    return fig


def _draw_scores(ax: Axes, scores: list[float], tile: int, seq_id: int) -> None:
    """The top row: every score, and the highest so far as a line of stairs."""
    m, low = theme.mode(), min(0.0, *scores)
    span = max(scores) - low or 1.0
    ax.axhline(0, color=m.line, linewidth=0.8)
    for key, score in enumerate(scores):
        ax.add_patch(Rectangle((key + 0.1, 0), 0.8, max(0.02, TALL * (score - low) / span), linewidth=0, gid="score",
                               facecolor=theme.prompt_colour(seq_id)))
    steps = [(start, max(scores[:start + tile])) for start in range(0, len(scores), tile)]
    edges = [x for start, _ in steps for x in (start, min(start + tile, len(scores)))]
    heights = [TALL * (highest - low) / span for _, highest in steps for _ in range(2)]
    ax.plot(edges, heights, color=m.ink, linewidth=1.2, linestyle=(0, (4, 3)), gid="highest")
