"""A chain of tensor operations as a graph: what is computed from what."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nanovllm.utils.checks import check
from visualizations import theme

WIDTH, HEIGHT = 0.8, 0.56
LANE, ARGUMENTS = 0.36, -1.15  # apart; where the arguments stand below the operations
Edge = tuple[float, float]


@theme.in_both_modes
def plot_operations(operations: Sequence[tuple[str, str, Sequence[str]]], *, title: str = "What is computed from what",
                    caption: str | None = None, ax: Axes | None = None) -> Figure:
    """A box for each operation, in the order in which they are launched, so to the right of all that it needs.

    A result that the next operation takes goes straight there. One that is taken later goes over the boxes between, in a
    lane of its own; arguments stand below the first operation that takes them.

    operations: (name, label, names of its inputs), each after its inputs; one without inputs is an argument, grey.
    Raises ValueError for an input that does not come before, and without an operation that has inputs.
    """
    known: list[str] = []
    for name, _, inputs in operations:
        missing = [other for other in inputs if other not in known]
        check(not missing, f"inputs of {name!r}", missing, f"among {', '.join(known) or 'nothing'}", "list operations in order")
        known.append(name)
    computed = [name for name, _, inputs in operations if inputs]
    check(bool(computed), "operations", list(known), "at least one with inputs", "give the names that an operation takes")
    place = {name: (float(x), 0.0) for x, name in enumerate(computed)} | _below(operations, computed)
    far = [(other, name) for name, _, inputs in operations for other in dict.fromkeys(inputs)
           if other in computed and place[name][0] - place[other][0] > 1]
    lanes = _lanes([(place[other][0], place[name][0]) for other, name in far])
    top, low = HEIGHT / 2 + LANE * (1 + max(lanes, default=-1)), min(y for _, y in place.values()) - HEIGHT / 2
    fig, ax = theme.canvas(ax, 10, 0.95 + 0.62 * (top - low + 0.3))
    m, size = theme.mode(), max(7.5, min(9, 70 / len(computed)))
    arrow = dict(arrowstyle="-|>", color=m.muted, linewidth=1.1, shrinkA=0, shrinkB=0)
    for name, label, inputs in operations:
        x, y = place[name]
        for other in dict.fromkeys(inputs):
            from_x, from_y = place[other]
            if from_y < 0:  # an argument: up, and along below the boxes where it is taken once more
                bend = [(from_x, from_y + HEIGHT / 2), (x + 0.3 * (from_x - x), -HEIGHT / 2)] if abs(from_x - x) < WIDTH else \
                       [(from_x + WIDTH / 2, from_y), (x + 0.1, from_y), (x + 0.1, -HEIGHT / 2)]
                ax.plot(*zip(*bend[:-1]), color=m.muted, linewidth=1.1, zorder=0)
                ax.annotate("", bend[-1], bend[-2], zorder=0, arrowprops=arrow)
            elif (other, name) not in far:
                ax.annotate("", (x - WIDTH / 2, y), (from_x + WIDTH / 2, from_y), zorder=0, arrowprops=arrow)
        ax.add_patch(FancyBboxPatch((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, edgecolor="none",
                                    facecolor=theme.prompt_colour(0) if inputs else m.free,
                                    boxstyle="round,pad=0,rounding_size=0.1",
                                    gid=f"operation-{name}" if inputs else f"given-{name}"))
        ax.text(x, y, label, ha="center", va="center_baseline", fontsize=size, parse_math=False,
                color=theme.text_on(theme.prompt_colour(0) if inputs else m.free))
    for (other, name), lane in zip(far, lanes, strict=True):
        begin, end, high = place[other][0] + 0.12, place[name][0] - 0.12, HEIGHT / 2 + LANE * (1 + lane)
        ax.plot([begin, begin, end], [HEIGHT / 2, high, high], color=theme.HUES[1], linewidth=1.8, gid=f"kept-{other}-{name}")
        ax.annotate("", (end, HEIGHT / 2), (end, high), arrowprops=arrow | {"color": theme.HUES[1], "linewidth": 1.8})
    theme.no_axes(ax)
    ends = [x for x, _ in place.values()]
    ax.set(xlim=(min(ends) - 0.5, max(ends) + 0.5), ylim=(low - 0.12, top + 0.18))
    given = len(operations) - len(computed)
    theme.title(ax, title, caption or f"{len(computed)} operations from {given} tensors (grey); launched one by one, each "
                "reads its inputs from memory and writes its result back."
                + (" Orange: a result that a later one reads." if far else ""))
    return fig


def _below(operations: Sequence[tuple[str, str, Sequence[str]]], computed: Sequence[str]) -> dict[str, Edge]:
    """Places of the arguments: below the first operation that takes them, side by side, a row lower where another stands."""
    takes = {name: inputs for name, _, inputs in operations}
    columns: dict[int, list[str]] = {}
    for name in (name for name, inputs in takes.items() if not inputs):
        columns.setdefault(next((i for i, user in enumerate(computed) if name in takes[user]), 0), []).append(name)
    places: dict[str, Edge] = {}
    for column, names in sorted(columns.items()):
        for i, name in enumerate(names):
            x, y = column + (i - (len(names) - 1) / 2) * (WIDTH + 0.1), ARGUMENTS
            while any(abs(x - other) < WIDTH and y == row for other, row in places.values()):
                y -= HEIGHT + 0.2
            places[name] = x, y
    return places


def _lanes(edges: Sequence[Edge]) -> list[int]:
    """A lane for each edge, the shorter the lower, so that no two of one lane meet."""
    lanes: dict[int, int] = {}
    for i in sorted(range(len(edges)), key=lambda i: edges[i][1] - edges[i][0]):
        (begin, end), lane = edges[i], 0
        while any(at == lane and edges[j][0] < end and begin < edges[j][1] for j, at in lanes.items()):
            lane += 1
        lanes[i] = lane
    return [lanes[i] for i in range(len(edges))]
