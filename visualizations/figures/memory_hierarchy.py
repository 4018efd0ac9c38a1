"""Where numbers lie in a GPU: large and far away, or small and next to the arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from nanovllm.utils.checks import check
from visualizations import theme


@dataclass(frozen=True)
class Level:
    """One kind of memory. size, speed: with units, of the whole card; holds: what attention keeps there."""

    name: str
    size: str
    speed: str
    holds: str


# An H100 (SXM) and an H200, which differ in the first line only. Sizes: NVIDIA H100 Tensor Core GPU Architecture (2022).
# Shared memory: 132 multiprocessors x 128 bytes a clock x 1.755 GHz.
HOPPER = (
    Level("HBM, the card's memory", "80 GB (H200: 141 GB)", "3.35 TB/s (H200: 4.8)", "weights, KV cache, q and out"),
    Level("L2 cache, one for all", "50 MB", "several TB/s", "what was read a moment ago"),
    Level("shared memory and L1 (SRAM)", "256 KB × 132", "about 30 TB/s", "the tile of keys and values"),
    Level("registers", "256 KB × 132", "every clock", "highest, total, acc; the scores"),
)


ARITHMETIC = "4 tensor cores in each of 132 multiprocessors: 989 TFLOP/s"  # bf16, without sparsity


@theme.in_both_modes
def plot_memory_hierarchy(levels: Sequence[Level] = HOPPER, *, arithmetic: str = ARITHMETIC,
                          ax: Axes | None = None) -> Figure:
    """A box for each level, the largest at the bottom; arrows are the way of a key to the arithmetic.

    levels: from the farthest to the nearest. arithmetic: what stands above them all. Raises ValueError without levels.
    """
    check(bool(levels), "levels", list(levels), "one or more", "pass the memories of a device")
    fig, ax = theme.canvas(ax, 10, 1.5 + 0.82 * (len(levels) + 1))
    m = theme.mode()
    top = len(levels)
    for row, level in enumerate(levels):
        indent = 0.42 * row
        shade = theme.mix(theme.sequence_colour(0), m.paper, 0.9 - 0.17 * row)
        ax.add_patch(FancyBboxPatch((indent, row + 0.1), 9.6 - 2 * indent, 0.68, boxstyle="round,pad=0,rounding_size=0.1",
                                    facecolor=shade, edgecolor=theme.sequence_colour(0), linewidth=1.1, gid=f"level-{row}"))
        ink = theme.text_on(shade)
        ax.text(indent + 0.18, row + 0.58, level.name, fontsize=10.5, fontweight="bold", color=ink, va="center")
        ax.text(indent + 0.18, row + 0.29, f"{level.size}, {level.speed}", fontsize=9.5, color=ink, va="center")
        ax.text(9.6 - indent - 0.18, row + 0.44, level.holds, fontsize=9.5, color=ink, va="center", ha="right")
    indent = 0.42 * top
    ax.add_patch(FancyBboxPatch((indent, top + 0.1), 9.6 - 2 * indent, 0.68, boxstyle="round,pad=0,rounding_size=0.1",
                                facecolor=m.paper, edgecolor=theme.HUES[1], linewidth=1.6))
    ax.text(4.8, top + 0.44, arithmetic, fontsize=9.5, fontweight="bold", color=m.ink, ha="center", va="center")
    for row in range(top):
        ax.add_patch(FancyArrowPatch((4.8, row + 0.74), (4.8, row + 1.13), arrowstyle="-|>", mutation_scale=13,
                                     color=m.ink, linewidth=1.4))
    theme.no_axes(ax)
    ax.set(xlim=(-0.05, 9.65), ylim=(0, top + 0.95))
    theme.title(ax, "Where numbers lie in an H100", "The further up, the smaller and the faster. A kernel is a plan for what "
                "goes up, how often, and what never comes down.")
    return fig
