"""The journey: the rooms that a prompt goes through, and the loop it goes round."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.typing import ColorType

from visualizations import theme

ROOMS = (
    ("tokenizer", "text → ids", "transformers"),
    ("waiting queue", "a Sequence", "engine/sequence"),
    ("scheduler", "who runs now", "engine/scheduler"),
    ("block table", "room in the cache", "engine/block_manager"),
    ("model", "prefill or decode", "engine/model_runner"),
    ("KV cache", "keys and values", "layers/attention"),
    ("sampler", "logits → one id", "layers/sampler"),
    ("detokenizer", "ids → text", "serving/detokenizer"),
)
NAMES = tuple(name for name, _, _ in ROOMS)
LOOP = ("sampler", "scheduler")
IN_LINE = tuple(name for name in NAMES if name != "KV cache")
WIDTH, GAP, HEIGHT = 1.6, 0.2, 1.0
DEPTH = -1.95  # of the KV cache, below the line


@theme.in_both_modes
def plot_journey(here: str | None = None, *, seq_id: int = 0, ax: Axes | None = None) -> Figure:
    """The map of rooms, left to right, the decode loop above and the KV cache under the model.

    here: the room to light up, one of `NAMES`; None shows the whole map with the file of each room.
    Raises ValueError for a room that does not exist.
    """
    if here is not None and here not in NAMES:
        raise ValueError(f"here={here!r}: must be one of {NAMES}; pass the name of a room.")
    fig, ax = theme.canvas(ax, 7.8, 3.2 if here is None else 2.15)
    m = theme.mode()
    for name, what, where in ROOMS:
        x, y = _corner(name)
        lit = here in (None, name)
        face: ColorType
        edge: ColorType
        if name == here:
            face, ink, edge = theme.prompt_colour(seq_id), "#ffffff", theme.prompt_colour(seq_id)
        else:
            face, ink, edge = (m.free if lit else m.paper), (m.ink if lit else m.muted), m.line
        ax.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.14", facecolor=face,
                                    edgecolor=edge, linewidth=1.2, gid=f"room-{name}"))
        ax.text(x + WIDTH / 2, y + 0.64, name.replace(" ", "\n") if y == 0 else name, ha="center", va="center", fontsize=9,
                fontweight="bold", color=ink, linespacing=1.05)
        ax.text(x + WIDTH / 2, y + 0.22, what, ha="center", va="center", fontsize=7.5, color=ink)
        if here is None:
            ax.text(x + WIDTH / 2, y - 0.1, where.replace("/", "/\n"), ha="center", va="top", fontsize=7.5, color=m.muted,
                    family="DejaVu Sans Mono", linespacing=1.15)
    for x in (_corner(name)[0] for name in IN_LINE[1:]):
        ax.add_patch(_arrow((x - GAP, 0.5), (x, 0.5), m.muted))
    under = _corner("model")[0] + WIDTH / 2
    gap = (-0.62 if here is None else -0.02, DEPTH + HEIGHT)
    ax.add_patch(FancyArrowPatch((under, gap[0]), (under, gap[1]), arrowstyle="<|-|>", mutation_scale=11, color=m.muted,
                                 linewidth=1.4, shrinkA=1, shrinkB=1))
    first, last = (_corner(name)[0] + WIDTH / 2 for name in reversed(LOOP))
    top = HEIGHT + 0.42
    colour = theme.sequence_colour(seq_id)
    ax.plot([last, last, first], [HEIGHT, top, top], color=colour, linewidth=1.6, solid_joinstyle="round")
    ax.add_patch(_arrow((first, top), (first, HEIGHT), colour))
    ax.text((first + last) / 2, top, " the drawn token is the next step's input ", ha="center", va="center",
            fontsize=9, color=m.ink, bbox=dict(facecolor=m.paper, edgecolor="none", pad=1))
    theme.no_axes(ax)
    ax.set(xlim=(-0.1, len(IN_LINE) * (WIDTH + GAP) - GAP + 0.1), ylim=(DEPTH - (0.62 if here is None else 0.1), top + 0.2))
    if here is None:
        theme.title(ax, "The rooms a prompt goes through",
                    "Left of the scheduler: once per request. From the scheduler to the sampler: once per step, over and over.")
    return fig


def _corner(name: str) -> tuple[float, float]:
    """Lower left corner of a room. The cache lies under the model, whose attention layers write it and read it."""
    if name == "KV cache":
        return IN_LINE.index("model") * (WIDTH + GAP), DEPTH
    return IN_LINE.index(name) * (WIDTH + GAP), 0.0


def _arrow(start: tuple[Any, ...], end: tuple[Any, ...], colour: ColorType) -> FancyArrowPatch:
    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.4, shrinkA=1, shrinkB=1)
