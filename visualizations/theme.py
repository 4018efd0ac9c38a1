"""The one visual language: what a colour, a shade, a hatch and an outline mean in every picture of the course.

A sequence keeps its colour everywhere. Dark of that colour is prompt, light is generated. A block is a rounded square
with its number; a hatch and a count mark a shared one, an outline one that is cached but free, pale grey a free one,
and a diagonal strike whatever was preempted.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import ceil
from textwrap import wrap
from typing import Any, ParamSpec, cast

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.typing import ColorType

from visualizations.both_modes import TwoModeFigure

P = ParamSpec("P")
# Told apart under deuteranopia, protanopia and tritanopia, neighbours in the list most easily; ids beyond start again.
HUES = ("#0b6fb8", "#d2570b", "#0f9171", "#ab4a96", "#a37a00", "#5a52b5", "#8c4a2f", "#4d6b7a")
SHARED_HATCH = "////"
WASTE_HATCH = "...."
GREY = "#7b8794"  # whatever belongs to no sequence in particular
STRIKE_HATCH = "\\\\"
ROUNDING = 0.14  # of a block one unit wide
DIGIT_ROOM = 0.27  # of a block: what a digit of its number needs
THINNEST = 0.15  # of a block: a part of one, such as a single token of sixteen, that shows beside its rim
TITLE_SIZE, CAPTION_SIZE, BESIDE_CAPTION = 11.5, 9.5, 1.1  # points; inches that the axis may take to the left of a caption
LEGEND_SIZE, BESIDE_LABEL = 9, 0.65  # points; inches of a handle and the space around it
WIDEST = 7.8  # inches: at 0.72 of its size (both_modes.READABLE) a figure then fits JupyterLab in a window of 700 pixels


@dataclass(frozen=True)
class Mode:
    """Colours that belong to no sequence. paper: background; ink: text; muted: captions, axes; free: free blocks."""

    paper: str
    ink: str
    muted: str
    line: str
    free: str


LIGHT = Mode(paper="#fdfdfb", ink="#22262b", muted="#5f6770", line="#c9ced4", free="#e9ebee")
DARK = Mode(paper="#16191d", ink="#e8eaed", muted="#a3abb4", line="#3f464e", free="#2b3036")
_mode: ContextVar[Mode] = ContextVar("mode", default=LIGHT)


def mode() -> Mode:
    return _mode.get()


@contextmanager
def using(chosen: Mode) -> Iterator[None]:
    """Draw in another mode: `with theme.using(theme.DARK): plot_...`."""
    token = _mode.set(chosen)
    try:
        yield
    finally:
        _mode.reset(token)


def in_both_modes(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Makes a `plot_...` draw a dark twin, too, when it draws a new figure in the light mode.

    What is plotted is read twice: an iterator among the arguments is made a list first.
    """

    @functools.wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)  # type: ignore[assignment]
        fig = plot(*args, **kwargs)
        if isinstance(fig, TwoModeFigure) and fig.dark is None and mode() is LIGHT and kwargs.get("ax") is None:
            with using(DARK):
                fig.dark = plot(*args, **kwargs)
        return fig

    return drawn


def mix(a: ColorType, b: ColorType, share: float) -> tuple[float, float, float]:
    """`share` of colour b in colour a."""
    red, green, blue = ((1 - share) * x + share * y for x, y in zip(to_rgb(a), to_rgb(b), strict=True))
    return red, green, blue


def sequence_colour(seq_id: int) -> str:
    """The hue of a sequence, which is also the shade of its prompt tokens."""
    return HUES[seq_id % len(HUES)]


def prompt_colour(seq_id: int) -> tuple[float, float, float]:
    return to_rgb(sequence_colour(seq_id))


def decode_colour(seq_id: int) -> tuple[float, float, float]:
    """The light shade of a sequence's hue, for the tokens it generated. Light also on dark paper."""
    return mix(sequence_colour(seq_id), "#ffffff", 0.58)


def phase_colour(seq_id: int, phase: str) -> tuple[float, float, float]:
    return prompt_colour(seq_id) if phase == "prefill" else decode_colour(seq_id)


def text_on(colour: ColorType) -> str:
    """Black or white, whichever is easier to read on `colour`."""
    red, green, blue = to_rgb(colour)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.56 else "#1b1e22"


def canvas(ax: Axes | None, width: float, height: float, *, widest: float = WIDEST) -> tuple[Figure, Axes]:
    """The figure and axes to draw on: those of `ax`, or new ones of `width` x `height` inches.

    widest: a wider figure is drawn this wide. Only a picture whose words would lie on each other may ask for more.

    A new figure is taken out of pyplot's hands at once, so that a notebook shows it once (as the cell's value) and
    keeps no reference to it.
    """
    if ax is None:
        width = min(width, widest)
        fig, ax = plt.subplots(figsize=(width, height), dpi=100, layout="constrained", FigureClass=TwoModeFigure)
        plt.close(fig)
        fig.set_facecolor(mode().paper)
    ax.set_facecolor(mode().paper)
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(mode().line)
    ax.tick_params(which="both", colors=mode().muted, labelsize=9, length=3)
    ax.xaxis.label.set_color(mode().muted)
    ax.yaxis.label.set_color(mode().muted)
    return cast(Figure, ax.get_figure(root=True)), ax


def title(ax: Axes, text: str, caption: str) -> None:
    """A title, and under it the sentence that says what to notice: one line each, or more where the figure is too narrow.

    Called last, when the vertical axis has its labels: what they take is missing beside the words.
    """
    fig = cast(Figure, ax.get_figure(root=True))
    room = max(3.0, fig.get_figwidth() - _left_of(ax))
    titles = _in_lines(text, room, TITLE_SIZE, "bold")
    lines = _in_lines(caption, max(3.0, min(fig.get_figwidth() - BESIDE_CAPTION, room)), CAPTION_SIZE)
    more, higher = len(lines) - 1, len(titles) - 1
    if isinstance(fig, TwoModeFigure):
        fig.set_figheight(fig.get_figheight() + 0.19 * more + 0.2 * higher)
    ax.set_title("\n".join(titles), loc="left", color=mode().ink, fontsize=TITLE_SIZE, fontweight="bold", pad=23 + 13.5 * more)
    ax.annotate("\n".join(lines), (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", color=mode().muted,
                fontsize=CAPTION_SIZE, ha="left", va="bottom", gid="caption")


def _left_of(ax: Axes) -> float:
    """Inches that the vertical axis takes with its ticks and its label."""
    ticks = [label.get_text() for label in ax.get_yticklabels()]
    widths = [0.35 if "$" in tick else inches(tick, 9) for tick in ticks if tick]  # a power of ten is set as a formula
    return max(widths, default=0.0) + 0.08 + (0.22 if ax.get_ylabel() else 0.0)


def inches(text: str, size: float, weight: str = "normal") -> float:
    """How wide a text is when drawn; of several lines, the widest."""
    font, lines = FontProperties(weight=weight), text.replace("$", "S").split("\n")  # a formula's dollars would be parsed
    return max((float(TextPath((0, 0), line, size=size, prop=font).get_extents().width) / 72 for line in lines if line.strip()),
               default=0.0)


def _in_lines(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """A sentence in as many lines of about one length as it needs at `width` inches."""
    count = ceil(inches(text, size, weight) / width)
    return [text] if count <= 1 else wrap(text, ceil(len(text) / count * 1.08))


def legend(ax: Axes, *, ncols: int = 1, **where: Any) -> None:
    """A frameless legend in the mode's ink, of at most `ncols` columns; `where` are matplotlib's own keywords."""
    widths = sorted(inches(label, LEGEND_SIZE) + BESIDE_LABEL for label in ax.get_legend_handles_labels()[1])
    room = cast(Figure, ax.get_figure(root=True)).get_figwidth() - _left_of(ax)
    while ncols > 1 and sum(widths[-ncols:]) > room:
        ncols -= 1
    for text in ax.legend(frameon=False, fontsize=LEGEND_SIZE, ncols=ncols, **where).get_texts():
        text.set_color(mode().ink)


def no_axes(ax: Axes) -> None:
    """For maps and tables, where position has no unit."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def draw_block(ax: Axes, x: float, y: float, number: int, *, state: str, colour: ColorType = "none", prompt: float = 1.0,
               filled: float = 1.0, light: ColorType = "none", references: int = 1, size: float = 0.86) -> FancyBboxPatch:
    """A block with its lower left corner at (x, y).

    state: "f"ree, "c"ached, "u"sed or "s"hared. colour, light: of its owner. filled: share of its slots that hold a
    token; prompt: share that holds prompt tokens, the rest of the filled ones are generated. A part too thin to see beside
    the rim is drawn THINNEST wide.
    """
    m = mode()
    prompt, filled = _seen(prompt, filled)
    box: dict[str, Any] = dict(boxstyle=f"round,pad=0,rounding_size={ROUNDING * size}", mutation_aspect=1)
    outline = FancyBboxPatch((x, y), size, size, facecolor=m.free if state == "f" else m.paper, edgecolor="none", **box)
    ax.add_patch(outline)
    ink, halo, centre, fits = m.muted, [], 0.5, True
    if state == "c":
        outline.set(edgecolor=m.muted, linewidth=1.3)
    elif state in "us":
        for start, end, shade in ((0, prompt, colour), (prompt, filled, light)):
            if end > start:
                part = Rectangle((x + start * size, y), (end - start) * size, size, facecolor=shade, edgecolor="none")
                ax.add_patch(part)
                part.set_clip_path(outline)
        # The number stands in the widest of the parts, clear of the edges between them.
        parts = ((0.0, prompt, colour), (prompt, filled, light), (filled, 1.0, m.paper))
        start, end, middle = max(parts, key=lambda part: part[1] - part[0])
        fits = end - start >= DIGIT_ROOM * len(str(number))
        centre = (start + end) / 2
        ink = m.ink if middle == m.paper else text_on(middle)
        halo = [withStroke(linewidth=2.4, foreground=middle)]
        edge = FancyBboxPatch((x, y), size, size, facecolor="none", edgecolor=colour, linewidth=1.3, **box)
        if state == "s":
            hatch = FancyBboxPatch((x, y), size, size, facecolor="none", edgecolor=mix(colour, "#ffffff", 0.45),
                                   linewidth=0, hatch=SHARED_HATCH, **box)
            ax.add_patch(hatch)
        ax.add_patch(edge)
    if references > 1:
        ax.text(x + 0.34 * size, y + 0.28 * size, str(number), ha="center", va="center", fontsize=9, color=ink,
                path_effects=halo)
        ax.text(x + 0.72 * size, y + 0.76 * size, f"×{references}", ha="center", va="center", fontsize=7.5, color=m.ink,
                bbox=dict(boxstyle="round,pad=0.12", facecolor=m.paper, edgecolor="none"))
    elif fits:
        ax.text(x + centre * size, y + size / 2, str(number), ha="center", va="center", fontsize=9, color=ink,
                path_effects=halo)
    else:  # no part is wide enough: the number lies over them, on a label of its own
        ax.text(x + size / 2, y + size / 2, str(number), ha="center", va="center", fontsize=8.5, color=m.ink,
                bbox=dict(boxstyle="round,pad=0.14", facecolor=m.paper, edgecolor="none"))
    return outline


def _seen(prompt: float, filled: float) -> tuple[float, float]:
    """Where the prompt and the filled part of a block end when none of its three parts is thinner than THINNEST."""
    parts = [prompt, max(0.0, filled - prompt), 1 - max(prompt, filled)]
    wide = [max(part, THINNEST) if part > 0 else 0.0 for part in parts]
    wide[wide.index(max(wide))] -= sum(wide) - 1
    return wide[0], wide[0] + wide[1]
