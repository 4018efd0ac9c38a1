"""A ring all-reduce, message by message: who sends which part to whom, and how much of the sum each part holds."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from nanovllm.utils.checks import check
from visualizations import theme


def ring_rounds(size: int) -> list[tuple[str, list[tuple[int, int]]]]:
    """[(phase, [(part, rank that sends it to rank + 1)])], a round each: `size` - 1 to add up, as many to hand round."""
    adding = [("add", [((rank - step) % size, rank) for rank in range(size)]) for step in range(size - 1)]
    handing = [("copy", [((rank + 1 - step) % size, rank) for rank in range(size)]) for step in range(size - 1)]
    return adding + handing


def parts_held(size: int) -> list[list[list[set[int]]]]:
    """Before the first round and after each: for every rank and part, the ranks whose numbers are in it."""
    held = [[{rank} for _ in range(size)] for rank in range(size)]
    pictures = [[[set(part) for part in row] for row in held]]
    for phase, sends in ring_rounds(size):
        brought = [(part, (rank + 1) % size, set(held[rank][part])) for part, rank in sends]
        for part, rank, ranks in brought:
            held[rank][part] = held[rank][part] | ranks if phase == "add" else ranks
        pictures.append([[set(part) for part in row] for row in held])
    return pictures


@theme.in_both_modes
def plot_ring(size: int = 4, *, ax: Axes | None = None) -> Figure:
    """A column of the picture per round; in it a row per rank, cut into `size` parts, each as full as its sum is complete.

    Raises ValueError below two ranks, and above eight, where the picture cannot be read any more.
    """
    check(2 <= size <= 8, "size", size, "from 2 to 8", "draw fewer ranks")
    pictures, rounds = parts_held(size), ring_rounds(size)
    wide, gap, lane = 1.0, 1.5, 1.55
    fig, ax = theme.canvas(ax, 11.5, 0.62 * lane * size + 1.1)
    m = theme.mode()
    for column, picture in enumerate(pictures):
        x0 = column * (wide + gap)
        for rank, row in enumerate(picture):
            y0 = -lane * rank
            for part, ranks in enumerate(row):
                height = 1.0 / size
                y = y0 + 0.5 - (part + 1) * height
                ax.add_patch(Rectangle((x0, y), wide, height, facecolor=m.free, edgecolor=m.paper, linewidth=1))
                for place, whose in enumerate(sorted(ranks)):
                    ax.add_patch(Rectangle((x0 + place * wide / size, y), wide / size, height, edgecolor=m.paper, linewidth=1,
                                           facecolor=theme.prompt_colour(whose), gid=f"round{column}-rank{rank}-part{part}"))
        if column < len(rounds):
            phase, sends = rounds[column]
            for part, rank in sends:
                other = (rank + 1) % size
                y = 0.5 - (part + 0.5) / size
                start, end = (x0 + wide + 0.05, -lane * rank + y), (x0 + wide + gap - 0.05, -lane * other + y)
                ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, linewidth=1, color=m.muted,
                                             shrinkA=0, shrinkB=0))
            ax.text(x0 + wide + gap / 2, 0.95, f"{column + 1}: {phase}", ha="center", va="center", fontsize=9, color=m.ink)
    for rank in range(size):
        ax.text(-0.15, -lane * rank, f"rank {rank}", ha="right", va="center", fontsize=9.5, color=m.ink, fontweight="bold")
    theme.no_axes(ax)
    ax.set(xlim=(-1.4, (wide + gap) * len(rounds) + wide + 0.2), ylim=(-lane * (size - 1) - 0.7, 1.25))
    theme.title(ax, f"An all-reduce around a ring of {size}",
                "A row is one part of the tensor; colours are the ranks whose numbers are in it. At the end all are whole.")
    return fig
