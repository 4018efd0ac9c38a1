"""Who is reused next: the queue of free blocks after each of several requests."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_reuse_order(queues: Mapping[str, Sequence[tuple[int, bool]]], *, ax: Axes | None = None) -> Figure:
    """A row of blocks for each moment, the one that is reused next at the left.

    queues: {what had happened: [(block, whether its content can still be found), ...]}. Raises ValueError without a moment.
    """
    check(bool(queues), "queues", queues, "one moment or more", "note the queue after each request")
    longest = max(map(len, queues.values()))
    fig, ax = theme.canvas(ax, 8, 0.55 * len(queues) + 0.8)
    for row, queue in enumerate(queues.values()):
        for place, (block, cached) in enumerate(queue):
            theme.draw_block(ax, place, -row, block, state="c" if cached else "f")
    theme.no_axes(ax)
    ax.tick_params(length=0)
    ax.set_yticks([0.43 - row for row in range(len(queues))], list(queues), color=theme.mode().ink)
    ax.set(xlim=(-0.1, longest + 3), ylim=(0.9 - len(queues), 1), aspect="equal", anchor="W")
    theme.title(ax, "Who is reused next (left first)",
                "Outlined: free, and its content can still be found. Pale: nothing to lose.")
    return fig
