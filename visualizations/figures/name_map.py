"""Where the tensors of a checkpoint go: their names on the left, on the right the parameters and the rows they fill."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme
from visualizations.figures.shape_flow import HUE

LEFT, RIGHT, WIDTH = 0.0, 2.4, 0.34  # where the lines begin and end, and the width of a parameter's bar
GAP = 0.45  # between parameters, in rows of the list


@dataclass(frozen=True)
class Place:
    """One tensor of a checkpoint and the rows of the parameter that it fills, `start` to `stop`, of `rows` in all."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    start: int
    stop: int
    rows: int


def name_map(model: Any, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> list[Place]:
    """The places of (name, shape) pairs in a model that says what is packed, as the loader finds them; in their order.

    model: with `packed_modules` (checkpoint name -> (module, part)) and modules that know their parts by `target`; on any
    device, "meta" too. Raises AttributeError, as the model does, for a name that it has no place for.
    """
    places = []
    for name, shape in tensors:
        path, kind = name.rsplit(".", 1)
        parent, _, last = path.rpartition(".")
        holder, part = model.packed_modules.get(last, (last, None))
        path = ".".join(filter(None, (parent, holder)))
        module = model.get_submodule(path)
        parameter = getattr(module, kind)
        target = module.target(kind, part) if hasattr(module, "target") else parameter
        start = (target.storage_offset() - parameter.storage_offset()) // parameter.stride(0)
        places.append(Place(name, tuple(shape), f"{path}.{kind}", start, start + target.shape[0], parameter.shape[0]))
    return places


@theme.in_both_modes
def plot_name_map(places: Sequence[Place], *, prefix: str = "", lost: Collection[str] = (), ax: Axes | None = None) -> Figure:
    """A line from each tensor to the rows that it fills. A parameter that several fill is packed, and stands in colour.

    places: from `name_map`, or by hand. prefix: left out of every name, such as "model.layers.0.". lost: names of tensors
    that did not arrive; their rows are dotted.
    """
    check(len(places) > 0, "places", places, "at least one", "pass name_map(model, tensors)")
    owners: dict[str, list[Place]] = {}
    for place in places:
        owners.setdefault(place.parameter, []).append(place)
    fig, ax = theme.canvas(ax, 10.5, min(6.4, 0.34 * len(places) + 1.4))
    m = theme.mode()
    # Each parameter stands as near to its tensors as it can; all together are as high as the list.
    order = sorted(owners, key=lambda name: sum(map(places.index, owners[name])) / len(owners[name]))
    scale = len(places) / (len(places) + GAP * (len(order) - 1))
    top, colours, ends = 0.0, {}, {}
    for name in order:
        parts, height = owners[name], len(owners[name]) * scale
        packed = len(parts) > 1
        for part in sorted(parts, key=lambda p: p.start):
            upper, lower = (top - height * row / part.rows for row in (part.start, part.stop))
            kind = part.name.split(".")[-2].removesuffix("_proj")
            colour = theme.sequence_colour(HUE.get(kind, 5)) if packed else theme.mix(theme.GREY, m.paper, 0.25)
            colours[part.name], ends[part.name] = colour, (upper + lower) / 2
            rows = Rectangle((RIGHT, lower), WIDTH, upper - lower, facecolor=colour, edgecolor=m.paper, linewidth=1.2,
                             gid=f"rows-{part.name}")
            if part.name in lost:
                rows.set(facecolor=m.free, edgecolor=m.muted, hatch=theme.WASTE_HATCH, linewidth=0)
            ax.add_patch(rows)
            if packed:
                ax.text(RIGHT + WIDTH + 0.08, (upper + lower) / 2, f"rows {part.start:,} to {part.stop - 1:,}", ha="left",
                        va="center", fontsize=8.5, color=m.muted)
        ax.text(RIGHT + WIDTH + (2.05 if packed else 0.08), top - height / 2, name.removeprefix(prefix), ha="left",
                va="center", fontsize=9, color=m.ink, fontweight="bold" if packed else "normal")
        top -= height + GAP * scale
    t = np.linspace(0, 1, 30)
    for i, place in enumerate(places):
        y, end = -i - 0.5, ends[place.name]
        packed = len(owners[place.parameter]) > 1
        ax.text(LEFT - 0.08, y, f"{place.name.removeprefix(prefix)}  {list(place.shape)}", ha="right", va="center", fontsize=9,
                color=m.ink)
        ax.plot(LEFT + (RIGHT - LEFT) * t, y + (end - y) * (3 * t**2 - 2 * t**3), color=colours[place.name],
                linewidth=2.0 if packed else 1.2, gid=f"line-{place.name}",
                linestyle=(0, (1, 3)) if place.name in lost else "-", alpha=0.5 if place.name in lost else 1.0)
    theme.no_axes(ax)
    ax.set(xlim=(-3.6, 7.7), ylim=(-len(places) - 0.15, 0.15))
    count, absent = sum(len(parts) > 1 for parts in owners.values()), sum(place.name in lost for place in places)
    theme.title(ax, "From the checkpoint's names to the engine's parameters",
                f"{absent} of {len(places)} tensors did not arrive; dotted rows hold whatever was in memory." if absent else
                f"{len(places)} tensors fill {len(owners)} parameters; {count} of these "
                f"{'is' if count == 1 else 'are'} packed, each of its parts at rows of its own.")
    return fig

