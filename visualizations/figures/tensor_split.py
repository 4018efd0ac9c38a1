"""Two matrices cut over ranks, by columns and then by rows, and what comes together again."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

TOKENS, SCALE = 0.7, 3.0  # how high a row of tokens is drawn, and the longest side of anything else
GAP = 1.15  # between two things in the chain


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
    fig, ax = theme.canvas(ax, 11.5, 1.5 + 1.75 * size, widest=11.5)
    m = theme.mode()
    share = intermediate_size // size
    longest = max(hidden_size, share)
    wide, narrow = (max(0.5, SCALE * n / longest) for n in (hidden_size, share))
    grey = theme.mix(theme.GREY, m.paper, 0.45)
    lane, right = 2.4, 0.0
    for rank in range(size):
        colour, light = theme.prompt_colour(rank), theme.decode_colour(rank)
        middle = -lane * rank
        x = 0.0
        ax.text(-0.35, middle, f"rank {rank}", ha="right", va="center", fontsize=10, color=m.ink, fontweight="bold")
        chain = [("x", f"x [n, {hidden_size}]", wide * 0.6, TOKENS, grey),
                 ("first", f"{names[0]}: columns\n{rank * share:,} to {(rank + 1) * share - 1:,}", narrow * 0.6, 1.35, colour),
                 ("between", f"{between}\n[n, {share}]", narrow * 0.6, TOKENS, light),
                 ("second", f"{names[1]}: rows\n{rank * share:,} to {(rank + 1) * share - 1:,}", wide * 0.6, 1.35, colour),
                 ("partial", f"a part of y\n[n, {hidden_size}]", wide * 0.6, TOKENS, light)]
        for i, (kind, text, width, height, face) in enumerate(chain):
            ax.add_patch(Rectangle((x, middle - height / 2), width, height, facecolor=face, edgecolor=m.paper,
                                   hatch=theme.SHARED_HATCH if kind == "partial" else None, gid=f"{kind}-{rank}"))
            ax.text(x + width / 2, middle - height / 2 - 0.1, text, ha="center", va="top", fontsize=8.5, color=m.ink,
                    linespacing=1.2)
            if i < len(chain) - 1:
                sign = "×" if chain[i + 1][0] in ("first", "second") else "="
                ax.text(x + width + GAP / 2, middle, sign, ha="center", va="center", fontsize=15, color=m.muted)
            x += width + GAP
        right = x - GAP
    bottom, top = -lane * (size - 1), 0.0
    for rank in range(size):
        ax.add_patch(FancyArrowPatch((right + 0.1, -lane * rank), (right + 1.55, (top + bottom) / 2), arrowstyle="-|>",
                                     mutation_scale=13, color=m.muted, linewidth=1.4, shrinkA=0, shrinkB=0))
    ax.add_patch(Rectangle((right + 1.6, (top + bottom) / 2 - TOKENS / 2), wide * 0.6, TOKENS, facecolor=grey,
                           edgecolor=m.paper, gid="sum"))
    ax.text(right + 1.6 + wide * 0.3, (top + bottom) / 2 + TOKENS / 2 + 0.4, "all-reduce:\nthe sum, for everybody", ha="center",
            va="bottom", fontsize=9, color=m.ink, fontweight="bold", linespacing=1.2)
    ax.text(right + 1.6 + wide * 0.3, (top + bottom) / 2 - TOKENS / 2 - 0.1, f"y [n, {hidden_size}]", ha="center", va="top",
            fontsize=8.5, color=m.ink)
    theme.no_axes(ax)
    ax.set(xlim=(-1.7, right + 1.9 + wide * 0.6), ylim=(bottom - 1.55, 1.1))
    theme.title(ax, "Cut by columns, then by rows: one sum for two products",
                f"Each of {size} ranks holds 1/{size} of both weights. Nothing is exchanged between the products; "
                "what each computes at the end is a part of every number.")
    return fig
