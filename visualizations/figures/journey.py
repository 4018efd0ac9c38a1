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
WIDTH, GAP, HEIGHT = 1.56, 0.26, 1.0


@theme.in_both_modes
def plot_journey(here: str | None = None, *, seq_id: int = 0, ax: Axes | None = None) -> Figure:
    """The map of rooms, left to right, with the decode loop above.

    here: the room to light up, one of `NAMES`; None shows the whole map with the file of each room.
    Raises ValueError for a room that does not exist.
    """
    if here is not None and here not in NAMES:
        raise ValueError(f"here={here!r}: must be one of {NAMES}; pass the name of a room.")
    fig, ax = theme.canvas(ax, 12.4, 2.5 if here is None else 1.45)
    m = theme.mode()
    step = WIDTH + GAP
    for i, (name, what, where) in enumerate(ROOMS):
        lit = here in (None, name)
        face: ColorType
        edge: ColorType
        if name == here:
            face, ink, edge = theme.prompt_colour(seq_id), "#ffffff", theme.prompt_colour(seq_id)
        else:
            face, ink, edge = (m.free if lit else m.paper), (m.ink if lit else m.muted), m.line
        ax.add_patch(FancyBboxPatch((i * step, 0), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.14", facecolor=face,
                                    edgecolor=edge, linewidth=1.2, gid=f"room-{name}"))
        ax.text(i * step + WIDTH / 2, 0.64, name, ha="center", va="center", fontsize=10, fontweight="bold", color=ink)
        ax.text(i * step + WIDTH / 2, 0.3, what, ha="center", va="center", fontsize=8.5, color=ink)
        if here is None:
            ax.text(i * step + WIDTH / 2, -0.24, where, ha="center", va="center", fontsize=7.5, color=m.muted,
                    family="DejaVu Sans Mono")
        if i:
            ax.add_patch(_arrow((i * step - GAP, 0.5), (i * step, 0.5), m.muted))
    first, last = (NAMES.index(name) * step + WIDTH / 2 for name in reversed(LOOP))
    top = HEIGHT + 0.42
    colour = theme.sequence_colour(seq_id)
    ax.plot([last, last, first], [HEIGHT, top, top], color=colour, linewidth=1.6, solid_joinstyle="round")
    ax.add_patch(_arrow((first, top), (first, HEIGHT), colour))
    ax.text((first + last) / 2, top, " the new token goes round again: one step, one token ", ha="center", va="center",
            fontsize=9, color=m.ink, bbox=dict(facecolor=m.paper, edgecolor="none", pad=1))
    theme.no_axes(ax)
    ax.set(xlim=(-0.1, len(ROOMS) * step - GAP + 0.1), ylim=(-0.42 if here is None else -0.1, top + 0.2))
    if here is None:
        theme.title(ax, "The rooms a prompt goes through",
                    "Everything left of the scheduler happens once; the middle runs once for each token that comes out.")
    return fig


def _arrow(start: tuple[Any, ...], end: tuple[Any, ...], colour: ColorType) -> FancyArrowPatch:
    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.4, shrinkA=1, shrinkB=1)
