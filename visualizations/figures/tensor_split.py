"""Two matrices cut over ranks, by columns and then by rows, and what comes together again."""

from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

TOKENS, WEIGHTS = 0.7, 1.35  # how high a row of tokens is drawn, and a weight
LONGEST, SHORTEST = 1.75, 0.5  # how wide the longest side of anything is drawn, and the least
GAP, LANE = 0.95, 2.75  # between two things in a chain, and from one rank's chain to the next
LETTERS = 17  # of a line of text under a thing


@theme.in_both_modes
def plot_tensor_split(hidden_size: int, intermediate_size: int, size: int = 2, *, names: tuple[str, str] = ("gate_up", "down"),
                      between: str = "SiLU(gate) × up", ax: Axes | None = None) -> Figure:
    """The feed-forward network of `size` ranks, a lane each: x, first weight, what lies between, second weight, partial sum.

    hidden_size, intermediate_size: of the whole model. between: what each rank does, alone, between the two products. A rank's
    colour is the colour of everything it holds; what all hold alike is grey. Raises ValueError when intermediate_size does
    not divide by size.
    """
    check(size >= 1 and intermediate_size % size == 0, "intermediate_size", intermediate_size, f"divisible by size={size}",
          "choose a number of ranks that divides it")
    fig, ax = theme.canvas(ax, theme.WIDEST, 1.35 + 1.65 * size)
    m = theme.mode()
    share = intermediate_size // size
    longest = max(hidden_size, share)
    wide, narrow = (max(SHORTEST, LONGEST * n / longest) for n in (hidden_size, share))
    grey = theme.mix(theme.GREY, m.paper, 0.45)
    right = 0.0
    for rank in range(size):
        colour, light = theme.prompt_colour(rank), theme.decode_colour(rank)
        middle, x, held = -LANE * rank, 0.0, f"{rank * share:,} to {(rank + 1) * share - 1:,}"
        ax.text(0, middle + TOKENS / 2 + 0.12, f"rank {rank}", ha="left", va="bottom", fontsize=10, color=m.ink,
                fontweight="bold")
        chain = [("x", "x", f"[n, {hidden_size}]", wide, TOKENS, grey),
                 ("first", f"{names[0]}: columns", held, narrow, WEIGHTS, colour),
                 ("between", between, f"[n, {share}]", narrow, TOKENS, light),
                 ("second", f"{names[1]}: rows", held, wide, WEIGHTS, colour),
                 ("partial", "a part of y", f"[n, {hidden_size}]", wide, TOKENS, light)]
        for i, (kind, text, extent, width, height, face) in enumerate(chain):
            ax.add_patch(Rectangle((x, middle - height / 2), width, height, facecolor=face, edgecolor=m.paper,
                                   hatch=theme.SHARED_HATCH if kind == "partial" else None, gid=f"{kind}-{rank}"))
            ax.text(x + width / 2, middle - height / 2 - 0.1, "\n".join([*wrap(text, LETTERS), extent]), ha="center", va="top",
                    fontsize=8.5, color=m.ink, linespacing=1.2)
            if i < len(chain) - 1:
                sign = "×" if chain[i + 1][0] in ("first", "second") else "="
                ax.text(x + width + GAP / 2, middle, sign, ha="center", va="center", fontsize=14, color=m.muted)
            x += width + GAP
        right = x - GAP
    bottom, centre = -LANE * (size - 1), -LANE * (size - 1) / 2
    for rank in range(size):
        ax.add_patch(FancyArrowPatch((right + 0.1, -LANE * rank), (right + GAP + 0.15, centre), arrowstyle="-|>",
                                     mutation_scale=13, color=m.muted, linewidth=1.4, shrinkA=0, shrinkB=0))
    left = right + GAP + 0.2
    ax.add_patch(Rectangle((left, centre - TOKENS / 2), wide, TOKENS, facecolor=grey, edgecolor=m.paper, gid="sum"))
    ax.text(left + wide / 2, centre + TOKENS / 2 + 0.15, "all-reduce:\nthe sum,\nfor all ranks", ha="center", va="bottom",
            fontsize=9, color=m.ink, fontweight="bold", linespacing=1.2)
    ax.text(left + wide / 2, centre - TOKENS / 2 - 0.1, f"y\n[n, {hidden_size}]", ha="center", va="top", fontsize=8.5,
            color=m.ink, linespacing=1.2)
    theme.no_axes(ax)
    ax.set(xlim=(-0.1, left + max(wide, 1.6) + 0.1), ylim=(bottom - 1.75, 1.0))
    theme.title(ax, "Cut by columns, then by rows: one sum for two products",
                f"Each of {size} ranks holds 1/{size} of both weights. Nothing is exchanged between the products; "
                "what each computes at the end is a part of every number.")
    return fig
