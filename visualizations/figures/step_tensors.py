"""A step's tensors as strips of numbers: each entry in the colour of whoever it belongs to."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from nanovllm.utils.checks import check
from visualizations import theme

HEIGHT = 0.78


@theme.in_both_modes
def plot_step_tensors(tensors: Mapping[str, Sequence[Any]],
                      owners: Mapping[str, Sequence[int | None]] | Sequence[int | None], *,
                      light: Collection[int] = (), title: str = "Whose is which number",
                      caption: str = "Colours are sequences; dotted: nobody's.", ax: Axes | None = None) -> Figure:
    """A row for each tensor, a cell for each entry, with the entry written in it.

    tensors: {name: entries, anything that can be written}. owners: of each entry a number, whose colour it gets, or None for
    padding; one list for all tensors, or one for each name. light: owners drawn in the light shade, such as decodes.
    Raises ValueError when an entry has no owner or an owner no entry.
    """
    whose = owners if isinstance(owners, Mapping) else dict.fromkeys(tensors, owners)
    for name, entries in tensors.items():
        check(len(entries) == len(whose[name]), f"entries of {name!r}", len(entries), f"{len(whose[name])}, as many as owners",
              "pass None for an entry that is nobody's")
    widest = max(map(len, tensors.values()))
    fig, ax = theme.canvas(ax, 10, min(6.2, 1.0 + 0.4 * len(tensors)))
    m = theme.mode()
    letters = max(len(str(entry)) for entries in tensors.values() for entry in entries)
    size = max(7.5, min(9.5, 560 / (widest * max(letters, 2) * 0.78)))
    for y, (name, entries) in enumerate(tensors.items()):
        for x, (entry, owner) in enumerate(zip(entries, whose[name], strict=True)):
            shade = m.paper if owner is None else (theme.decode_colour if owner in light else theme.prompt_colour)(owner)
            ax.add_patch(Rectangle((x, -y - HEIGHT / 2), 0.94, HEIGHT, facecolor=shade, linewidth=0.8,
                                   edgecolor=m.muted if owner is None else shade,
                                   hatch=theme.WASTE_HATCH if owner is None else None,
                                   gid=f"{name}-{'nobody' if owner is None else owner}"))
            halo = [withStroke(linewidth=3.5, foreground=m.paper)] if owner is None else []  # or it is lost among the dots
            ax.text(x + 0.47, -y, str(entry), ha="center", va="center_baseline", fontsize=size, parse_math=False,
                    color=m.ink if owner is None else theme.text_on(shade), path_effects=halo)
    theme.no_axes(ax)
    ax.set_yticks([-y for y in range(len(tensors))], list(tensors), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(-0.1, max(widest, 12) + 0.1), ylim=(-len(tensors) + 0.4, 0.6))
    theme.title(ax, title, caption)
    return fig
