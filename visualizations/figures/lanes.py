"""Who works when: a lane for each thread, process or device, boxes for what it does, numbered arrows for what it hands on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.typing import ColorType

from visualizations import theme

Kind = Literal["host", "device", "waits", "free", "other", "sum"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HIGH, LANE = 0.56, 1.0  # of a box, and from one lane to the next
ROOM = 0.36  # of time's length: beside the lanes, for their names


@dataclass(frozen=True)
class Work:
    """A box: what a lane does from `start` to `end`.

    kind: "host" is light and "device" dark, in the colour of `owner`, a step or a rank; "waits" is dotted, "free" dashed;
    "other" has no owner; "sum" is grey: lanes do it together.
    """

    lane: int
    start: float
    end: float
    text: str
    kind: Kind = "host"
    owner: int | None = None


@dataclass(frozen=True)
class Handed:
    """An arrow from (lane, time) to (lane, time), with a number that the text around the picture explains; 0 shows none."""

    start: tuple[int, float]
    end: tuple[int, float]
    number: int = 0


@dataclass(frozen=True)
class Together:
    """A frame around lanes `first` to `last`, such as those of one process; its name, if any, ends lane `beside`."""

    first: int
    last: int
    name: str = ""
    beside: int = 0


def draw_lanes(names: Sequence[tuple[str, str]], works: Sequence[Work], arrows: Sequence[Handed], frames: Sequence[Together], *,
               until: float, title: str, caption: str, ax: Axes | None = None) -> Figure:
    """names: (name, what runs there) of each lane, from above. until: where time ends."""
    fig, ax = theme.canvas(ax, theme.WIDEST, 0.95 + 0.7 * len(names))
    m, left = theme.mode(), -ROOM * until / 2
    for frame in frames:
        top, bottom = -LANE * frame.first + LANE * 0.43, -LANE * frame.last - LANE * 0.43
        ax.add_patch(Rectangle((left - 0.6, bottom), until - left + 1.6, top - bottom, linewidth=1, edgecolor=m.line,
                               facecolor=theme.mix(m.free, m.paper, 0.4), gid=f"frame-{frame.name}"))
        ax.text(until - 0.4, -LANE * frame.beside, frame.name, ha="right", va="center", fontsize=8.5, color=m.muted)
    for lane, (name, runs) in enumerate(names):
        y, lines = -LANE * lane, runs.count("\n") + 1
        ax.text(left + 0.2, y + 0.1 * lines, name, ha="left", va="center", fontsize=9.5, color=m.ink, fontweight="bold")
        ax.text(left + 0.2, y - 0.14, runs, ha="left", va="center", fontsize=8, color=m.muted, linespacing=1.1)
        ax.plot([0, until], [y, y], color=m.line, linewidth=1, zorder=0.9)
    for work in works:
        face, edge, hatch = _look(work)
        dashes = (0, (4, 2)) if work.kind == "free" else "-"
        y = -LANE * work.lane
        ax.add_patch(Rectangle((work.start, y - HIGH / 2), work.end - work.start, HIGH, facecolor=face, edgecolor=edge,
                               hatch=hatch, linewidth=0.8, linestyle=dashes, gid=f"{work.kind}-{work.lane}"))
        halo = [withStroke(linewidth=3, foreground=m.paper)] if work.kind == "waits" else []
        ax.text((work.start + work.end) / 2, y, work.text, ha="center", va="center", fontsize=8, linespacing=1.15,
                color=m.ink if work.kind in ("waits", "free", "other") else theme.text_on(face), path_effects=halo)
    for arrow in arrows:
        _draw_arrow(ax, arrow)
    theme.no_axes(ax)
    ax.set(xlim=(left - 1, until + 1.4), ylim=(-LANE * (len(names) - 1) - LANE * 0.46, LANE * 0.46))
    theme.title(ax, title, caption)
    return fig


def _look(work: Work) -> tuple[ColorType, ColorType, str | None]:
    """(face, edge, hatch) of a box."""
    m = theme.mode()
    if work.kind == "waits":
        return m.paper, m.line, theme.WASTE_HATCH
    if work.kind in ("free", "other"):
        return m.paper, m.muted, None
    if work.kind == "sum" or work.owner is None:
        return theme.GREY, m.paper, None
    return (theme.prompt_colour if work.kind == "device" else theme.decode_colour)(work.owner), m.paper, None


def _draw_arrow(ax: Axes, arrow: Handed) -> None:
    m = theme.mode()
    (start, at), (end, then) = arrow.start, arrow.end
    down = 1 if end > start else -1
    first, last = -LANE * start - down * HIGH / 2, -LANE * end + down * HIGH / 2
    ax.add_patch(FancyArrowPatch((at, first), (then, last), arrowstyle="-|>", mutation_scale=11, color=m.ink, linewidth=1.3,
                                 shrinkA=0, shrinkB=0, gid="handed", zorder=3))
    if arrow.number:
        # Beside the box that it leaves: halfway a long arrow is over another lane's box.
        share = min(0.5, 0.22 / abs(last - first)) if abs(end - start) > 1 else 0.45
        ax.text(at + share * (then - at), first + share * (last - first), str(arrow.number), ha="center", va="center",
                fontsize=7.5, color=m.paper, fontweight="bold", zorder=4,
                bbox=dict(boxstyle="circle,pad=0.18", facecolor=m.ink, edgecolor=m.paper, linewidth=0.8))
