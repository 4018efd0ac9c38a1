"""One stretch of memory for each request: what is reserved, what is used, and the free pieces between."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

HEIGHT = 0.62


@theme.in_both_modes
def plot_stretches(memories: Mapping[str, Sequence[tuple[int, int, int, int]]], num_slots: int, *,
                   ax: Axes | None = None) -> Figure:
    """A row for each state of a contiguous cache, a box for each stretch in it.

    memories: {when: [(seq_id, first slot, slots reserved, slots used), ...]}. Coloured slots hold a token; dotted ones are
    reserved and unused; pale ones are free. Raises ValueError for a stretch that leaves the memory or overlaps another.
    """
    fig, ax = theme.canvas(ax, 10, 1.3 + 0.75 * len(memories))
    m, longest, free = theme.mode(), 0, 0
    for row, stretches in enumerate(memories.values()):
        at, gaps = 0, []
        for seq_id, start, length, used in sorted(stretches, key=lambda s: s[1]):
            check(at <= start and start + length <= num_slots, f"stretch of {seq_id}", (start, length),
                  f"between {at} and {num_slots}", "reserve a stretch that is free")
            gaps.append(start - at)
            at = start + length
            colour, box = theme.prompt_colour(seq_id), (start, -row - HEIGHT / 2)
            ax.add_patch(Rectangle(box, length, HEIGHT, facecolor=m.paper, edgecolor=m.muted, linewidth=0,
                                   hatch=theme.WASTE_HATCH, gid=f"reserved-{row}"))
            ax.add_patch(Rectangle(box, used, HEIGHT, facecolor=colour, linewidth=0, gid=f"used-{row}"))
            ax.add_patch(Rectangle(box, length, HEIGHT, facecolor="none", edgecolor=m.muted, linewidth=0.8))
            wide = num_slots * (0.5 + len(str(seq_id))) / 110  # what the number takes
            if used > wide:
                ax.text(start + used / 2, -row, str(seq_id), ha="center", va="center", fontsize=9, color=theme.text_on(colour))
            elif length > wide:
                ax.text(start + length / 2, -row, str(seq_id), ha="center", va="center", fontsize=9, color=m.ink,
                        bbox={"facecolor": m.paper, "linewidth": 0, "pad": 1})
        gaps.append(num_slots - at)
        longest, free = max(gaps), sum(gaps)
        ax.add_patch(Rectangle((0, -row - HEIGHT / 2), num_slots, HEIGHT, facecolor=m.free, linewidth=0, zorder=0.5))
    ax.set_yticks([-row for row in range(len(memories))], list(memories), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(xlabel="token slots of the KV cache", xlim=(0, num_slots), ylim=(-len(memories) + 0.5, 0.5))
    theme.title(ax, "A stretch for each request", f"Dotted: reserved, unused. In the last row {free:,} slots are free, "
                f"and the longest piece of them is {longest:,}.")
    return fig
