"""A safetensors file from its first byte to its last: which tensors lie where, and one layer of it, enlarged."""

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.typing import ColorType

from nanovllm.utils.checks import check
from visualizations import theme
from visualizations.figures.shape_flow import HUE

LAYER = re.compile(r"\.layers\.(\d+)\.")


@theme.in_both_modes
def plot_checkpoint_file(header: Mapping[str, Mapping[str, Any]], header_bytes: int, *, zoom: int = 0,
                         ax: Axes | None = None) -> Figure:
    """Below, the file in the order of its bytes, a box a layer; above, the tensors of layer `zoom`.

    header: as it stands in the file, {name: {"data_offsets": [start, end], ...}}, offsets from the header's end.
    header_bytes: its length, with the eight bytes before it. Raises ValueError when the file has no such layer.
    """
    tensors = sorted((entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    groups = [(name, list(members)) for name, members in groupby(tensors, key=lambda t: _group(t[1]))]
    layers = [name for name, _ in groups]
    check(f"layer {zoom}" in layers, "zoom", zoom, f"the number of a layer, of {layers}", "pass one that the file has")
    fig, ax = theme.canvas(ax, 11, 2.9)
    m = theme.mode()
    mega = 1e6
    total = (header_bytes + tensors[-1][0][1]) / mega
    _box(ax, 0, 0, header_bytes / mega, m.ink, "header", total)
    for i, (name, members) in enumerate(groups):
        start, end = ((header_bytes + at) / mega for at in (members[0][0][0], members[-1][0][1]))
        shade = theme.mix(theme.GREY, m.paper, 0.55 if i % 2 else 0.3)
        _box(ax, start, 0, end - start, shade, name, total)
        if name != f"layer {zoom}":
            continue
        scale = total / (end - start)
        for left, right in ((start, 0.0), (end, total)):
            ax.plot([left, right], [1, 1.6], color=m.muted, linewidth=0.9, linestyle=(0, (3, 2)))
        for (first, last), tensor in members:
            part = tensor.split(".")[-2]
            hue = HUE.get(part.removesuffix("_proj"))
            colour = shade if hue is None else theme.prompt_colour(hue)
            _box(ax, ((header_bytes + first) / mega - start) * scale, 1.6, (last - first) / mega * scale, colour, part, total)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set(xlabel="place in the file (MB)", xlim=(0, total), ylim=(-0.06, 2.66))
    size = sum(end - start for (start, end), _ in tensors)
    small = sum(end - start for (start, end), name in tensors if name.split(".")[-2].endswith("norm"))
    theme.title(ax, "A checkpoint, byte by byte",
                f"{len(tensors)} tensors, end to end, and above them those of layer {zoom}. "
                f"The norms, {small / size:.2%} of the bytes, are too thin to see.")
    return fig


def _group(name: str) -> str:
    layer = LAYER.search(name)
    return f"layer {layer[1]}" if layer else name.split(".")[-2]


def _box(ax: Axes, x: float, y: float, width: float, colour: ColorType, label: str, total: float) -> None:
    m = theme.mode()
    ax.add_patch(Rectangle((x, y), width, 1, facecolor=colour, edgecolor=m.paper, linewidth=0.7 if width > total / 300 else 0,
                           gid=f"bytes-{label}"))
    if width > total * 0.0088 * len(label):  # only where it fits
        ax.text(x + width / 2, y + 0.5, label, ha="center", va="center", fontsize=8.5, color=theme.text_on(colour))
