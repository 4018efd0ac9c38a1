"""A chain of tensor operations as a graph: what is computed from what."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nanovllm.utils.checks import check
from visualizations import theme

WIDTH, HEIGHT = 0.82, 0.56


@theme.in_both_modes
def plot_operations(operations: Sequence[tuple[str, str, Sequence[str]]], *, title: str = "What is computed from what",
                    caption: str | None = None, ax: Axes | None = None) -> Figure:
    """A box for each operation, to the right of all that it needs.

    operations: (name, label, names of its inputs), each after its inputs; one without inputs is an argument, grey.
    Raises ValueError for an input that does not come before.
    """
    level: dict[str, int] = {}
    for name, _, inputs in operations:
        missing = [other for other in inputs if other not in level]
        check(not missing, f"inputs of {name!r}", missing, f"among {', '.join(level) or 'nothing'}", "list operations in order")
        level[name] = 1 + max((level[other] for other in inputs), default=-1)
    columns = [[name for name in level if level[name] == depth] for depth in range(max(level.values()) + 1)]
    tallest = max(map(len, columns))
    place = {name: (x, -(i - (len(names) - 1) / 2)) for x, names in enumerate(columns) for i, name in enumerate(names)}
    fig, ax = theme.canvas(ax, 10, min(6.2, 1.2 + 0.55 * tallest))
    m = theme.mode()
    for name, label, inputs in operations:
        x, y = place[name]
        shade = theme.prompt_colour(0) if inputs else m.free
        for other in inputs:
            from_x, from_y = place[other]
            ax.annotate("", (x - WIDTH / 2, y), (from_x + WIDTH / 2, from_y), zorder=0,
                        arrowprops=dict(arrowstyle="-|>", color=m.muted, linewidth=1.0, shrinkA=0, shrinkB=0,
                                        connectionstyle="arc3" if level[name] - level[other] < 2 else "arc3,rad=-0.25"))
        ax.add_patch(FancyBboxPatch((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, facecolor=shade, edgecolor="none",
                                    boxstyle="round,pad=0,rounding_size=0.1",
                                    gid=f"operation-{name}" if inputs else f"given-{name}"))
        ax.text(x, y, label, ha="center", va="center_baseline", fontsize=max(7.5, min(9, 70 / len(columns))), parse_math=False,
                color=theme.text_on(shade))
    theme.no_axes(ax)
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-tallest / 2 - 0.15, tallest / 2 + 0.15))
    computed = sum(bool(inputs) for _, _, inputs in operations)
    theme.title(ax, title, caption or f"{computed} operations from {len(operations) - computed} tensors (grey); launched one "
                "by one, each reads its inputs from memory and writes its result back.")
    return fig
