"""A finite automaton as a graph: its states, and the characters that lead from one to the next."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from nanovllm.utils.checks import check
from visualizations import theme

RADIUS = 0.25
APART = 1.35  # columns; rows are 1 apart
Point = tuple[float, float]
WIDTH, INCHES = theme.WIDEST - 0.2, 1.05  # of the figure in inches, and of a unit at most


@theme.in_both_modes
def plot_automaton(moves: Sequence[Mapping[str, int]], ends: Collection[int], *, marked: Collection[int] = (),
                   title: str = "The automaton", caption: str | None = None, ax: Axes | None = None) -> Figure:
    """A circle per state, as many columns from the left as the shortest text that leads to it has characters.

    moves: for each state {character: the state behind it}; state 0 is the beginning. ends: states in which a text may end,
    drawn with a second ring. marked: states to colour, for instance where a text has led. Raises ValueError without states, and
    for a move to a state that is not there.
    """
    check(len(moves) > 0, "states", len(moves), "at least one", "begin with the beginning, {}")
    known = range(len(moves))
    for state, own in enumerate(moves):
        wrong = {char: to for char, to in own.items() if to not in known}
        check(not wrong, f"moves of state {state}", wrong, f"states from 0 to {len(moves) - 1}", "list every state")
    column = _columns(moves)
    columns = [[s for s in column if column[s] == depth] for depth in range(max(column.values(), default=0) + 1)]
    place = {state: (APART * x, (len(states) - 1) / 2 - i) for x, states in enumerate(columns)
             for i, state in enumerate(states)}
    arrows = {(state, to): _Arrow.between(place[state], place[to], column[to] - column[state])
              for state in column for to in sorted(set(moves[state].values()))}
    heights = [y for _, y in place.values()]
    top = max([max(heights) + RADIUS, *(arrow.label[1] for arrow in arrows.values())]) + 0.2
    bottom = min([min(heights) - RADIUS, *(arrow.label[1] for arrow in arrows.values())]) - 0.2
    left, right = -RADIUS - 0.6, APART * (len(columns) - 1) + RADIUS + 0.15
    inches = min(INCHES, WIDTH / (right - left))
    fig, ax = theme.canvas(ax, WIDTH + 0.2, inches * (top - bottom) + 0.7)
    m = theme.mode()
    line = dict(arrowstyle="-|>", color=m.muted, linewidth=1.2, shrinkA=0, shrinkB=0)
    ax.annotate("", (-RADIUS, place[0][1]), (left + 0.1, place[0][1]), gid="start", arrowprops=line)
    for (state, to), arrow in arrows.items():
        said = in_words([char for char, other in moves[state].items() if other == to])
        ax.annotate("", arrow.end, arrow.start, gid=f"move-{state}-{to}", zorder=0,
                    arrowprops=line | {"connectionstyle": f"arc3,rad={arrow.rad}"})
        ax.text(*arrow.label, said, ha="center", va="center_baseline", fontsize=10.5, color=m.ink, family="monospace",
                parse_math=False, bbox=dict(boxstyle="round,pad=0.12", facecolor=m.paper, edgecolor="none"))
    for state, (x, y) in place.items():
        shade = theme.HUES[0] if state in marked else m.free
        ax.add_patch(Circle((x, y), RADIUS, facecolor=shade, edgecolor=m.muted, linewidth=1.2, gid=f"state-{state}"))
        if state in ends:
            ax.add_patch(Circle((x, y), RADIUS * 0.8, facecolor="none", edgecolor=m.paper if state in marked else m.muted,
                                linewidth=1.2, gid=f"end-{state}"))
        ax.text(x, y, str(state), ha="center", va="center_baseline", fontsize=10, color=theme.text_on(shade))
    theme.no_axes(ax)
    ax.set(xlim=(left, left + WIDTH / inches), ylim=(bottom, top), aspect="equal", anchor="NW")
    theme.title(ax, title, caption or "Follow a text character by character. It may end in a state with two rings; where no "
                "arrow fits, it can no longer match.")
    return fig


def in_words(chars: Collection[str]) -> str:
    """Characters as an arrow's label: runs of three or more neighbours are joined, a blank has a name."""
    runs: list[list[str]] = []
    for char in sorted(chars):
        if runs and ord(char) == ord(runs[-1][-1]) + 1:
            runs[-1].append(char)
        else:
            runs.append([char])
    named = {" ": "blank", "\n": "new line", "\t": "tab"}
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(named.get(char, char) for char in run) for run in runs]
    return ", ".join(parts)


def _columns(moves: Sequence[Mapping[str, int]]) -> dict[int, int]:
    """{state: characters of the shortest text that leads to it}, in the order found; states that none leads to are left out."""
    column = {0: 0}
    for state in (found := [0]):  # grows while we go through it
        for to in moves[state].values():
            if to not in column:
                column[to] = column[state] + 1
                found.append(to)
    return column


@dataclass(frozen=True)
class _Arrow:
    """Where an arrow starts and ends, how far it is bent (matplotlib's `arc3`), and the place of its label."""

    start: Point
    end: Point
    rad: float
    label: Point

    @classmethod
    def between(cls, start: Point, end: Point, columns: int) -> "_Arrow":
        """From circle to circle: straight into the next column, in a bow elsewhere, and a loop where both are one."""
        (x, y), (to_x, to_y) = start, end
        if start == end:
            return cls((x - 0.12, y + RADIUS * 0.88), (x + 0.12, y + RADIUS * 0.88), -1.6, (x, y + RADIUS + 0.34))
        rad = 0.0 if columns == 1 else -0.28 if abs(columns) < 2 else -0.42
        # A bow leaves and arrives where it points, beside the straight ones. arc3's control point lies `rad` lengths beside
        # the middle, and the curve half as far.
        aim = ((x + to_x) / 2 + rad * (to_y - y), (y + to_y) / 2 - rad * (to_x - x))
        (x, y), (to_x, to_y) = _towards(start, aim), _towards(end, aim)
        label = ((x + to_x) / 2 + rad / 2 * (to_y - y), (y + to_y) / 2 - rad / 2 * (to_x - x))
        return cls((x, y), (to_x, to_y), rad, label)


def _towards(centre: Point, aim: Point) -> Point:
    """The point of a circle that faces `aim`."""
    (x, y), (to_x, to_y) = centre, aim
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    return x + (to_x - x) / length * RADIUS, y + (to_y - y) / length * RADIUS
