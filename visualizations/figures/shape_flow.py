"""Shapes on their way through a layer: how wide one token is after each operation, and what is added to the stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.typing import ColorType

from nanovllm.utils.checks import check
from visualizations import theme

HEIGHT, WIDTH, STREAM = 3.0, 0.52, 3.75  # of the widest bar, of every bar, and where the residual stream runs
HUE = {"q": 0, "k": 1, "v": 2, "gate": 3, "up": 4}  # of the parts of packed weights, here and in the name map


@dataclass(frozen=True)
class Stop:
    """What one operation returns. parts: name -> shape, [num_tokens, ...]. reads: it takes its input from the stream."""

    name: str
    parts: Mapping[str, tuple[int, ...]]
    reads: bool = False


def record_flow(layer: Any, run: Callable[[], object]) -> list[Stop]:
    """The stops of one `run()` through `layer`, a torch module, in the order in which its innermost modules were called.

    A packed weight (one with `sizes`) comes apart into its parts. Norms of two heads, called one after the other, are one
    stop. Raises ValueError when `run` never reaches the layer.
    """
    stops: list[Stop] = []
    inside: list[Any] = []  # what the layers share, such as the rotary embedding, is also called by the others

    def watch(name: str, module: Any) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if not inside:
                return
            several = isinstance(output, tuple)
            # A norm that is handed the stream beside x returns it too; the first layer's has no stream yet.
            reads = not stops or (several and len(inputs) == 2)
            if several and not reads:
                parts = dict(zip("qk", (tuple(t.shape) for t in output)))
            else:
                shape = tuple((output[0] if several else output).shape)
                parts = {part: (shape[0], size) for part, size in getattr(module, "sizes", {"": shape[-1]}).items()}
                if len(shape) == 3:
                    parts = {name.partition("_")[0]: shape}
            last = stops[-1] if stops else None
            if last and last.name.endswith(f"_{name.partition('_')[2]}") and len(shape) == 3:
                stops[-1] = Stop(f"{last.name}, {name}", {**last.parts, **parts})
            else:
                stops.append(Stop(name, parts, reads))
        return module.register_forward_hook(hook)

    hooks = [watch(name.rpartition(".")[2], module) for name, module in layer.named_modules()
             if not list(module.children())]
    hooks += [layer.register_forward_pre_hook(lambda *_: inside.append(True)),
              layer.register_forward_hook(lambda *_: inside.clear())]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    check(bool(stops), "stops", stops, "at least one", "pass a `run` that calls the layer")
    return stops


@theme.in_both_modes
def plot_shape_flow(stops: Sequence[Stop], *, ax: Axes | None = None) -> Figure:
    """A bar per operation, as high as one token is wide after it; above them the residual stream, which they read and add to.

    stops: from `record_flow`, or by hand. A branch begins at a stop that reads the stream and is added to it at its end.
    """
    check(len(stops) > 0 and stops[0].reads, "stops", [s.name for s in stops], "a list that begins by reading the stream",
          "pass record_flow(layer, run)")
    fig, ax = theme.canvas(ax, 7.8, 4.6)
    m = theme.mode()
    widest = max(sum(map(_channels, s.parts.values())) for s in stops)
    starts = [i for i, s in enumerate(stops) if s.reads]
    ends = [i - 1 for i in starts[1:]] + [len(stops) - 1]
    plain = theme.mix(theme.GREY, m.paper, 0.25)
    hidden = _shape(next(iter(stops[0].parts.values())))
    ax.plot([-0.75, len(stops) - 0.3], [STREAM, STREAM], color=theme.GREY, linewidth=5, solid_capstyle="butt", gid="stream")
    ax.text(-0.72, STREAM + 0.2, f"residual stream {hidden}", ha="left", va="bottom", fontsize=9, color=m.ink)
    for i, stop in enumerate(stops):
        bottom = 0.0
        for part, shape in stop.parts.items():
            height = HEIGHT * _channels(shape) / widest
            colour = theme.prompt_colour(HUE[part]) if part in HUE else plain
            ax.add_patch(Rectangle((i - WIDTH / 2, bottom), WIDTH, height, facecolor=colour, edgecolor=m.paper, linewidth=1.2,
                                   gid=f"bar-{i}-{part}"))
            if part:
                ax.text(i, bottom + height / 2, part, ha="center", va="center", fontsize=9, color=theme.text_on(colour),
                        fontweight="bold")
            bottom += height
        shapes = [_shape(s) for s in stop.parts.values()]
        if len(shapes) > 1 and len(next(iter(stop.parts.values()))) == 2:
            shapes = [f"[{next(iter(stop.parts.values()))[0]}, {sum(map(_channels, stop.parts.values()))}]"]
        ax.text(i, bottom + 0.08, "\n".join(dict.fromkeys(reversed(shapes))), ha="center", va="bottom", fontsize=7.5,
                color=m.ink, linespacing=1.15, gid=f"shape-{i}", bbox=dict(facecolor=m.paper, edgecolor="none", pad=0.6),
                zorder=3)
        ax.text(i, -0.12, stop.name.replace(", ", "\n").replace("_proj", "\n_proj").replace("_attention", "\n_attention")
                .replace("_layernorm", "\n_layernorm"),
                ha="center", va="top", fontsize=8, color=m.muted, family="DejaVu Sans Mono", linespacing=1.2)
        if i not in starts:
            ax.add_patch(_arrow((i - 1 + WIDTH / 2, 0.2), (i - WIDTH / 2, 0.2), m.muted))
    for start, end in zip(starts, ends):
        top = sum(HEIGHT * _channels(s) / widest for s in stops[start].parts.values()) + 0.36
        ax.add_patch(_arrow((start, STREAM - 0.04), (start, top), m.muted))
        place, middle = end + 0.42, HEIGHT * _channels(next(iter(stops[end].parts.values()))) / widest / 2
        ax.plot([end + WIDTH / 2, place], [middle, middle], color=m.muted, linewidth=1.3)
        ax.add_patch(_arrow((place, middle), (place, STREAM - 0.16), m.muted))
        ax.plot(place, STREAM, "o", markersize=16, color=m.paper, markeredgecolor=m.ink, markeredgewidth=1.2, gid="plus")
        ax.plot(place, STREAM, "+", markersize=9, color=m.ink, markeredgewidth=1.5)
    for i, part, j in _detours(stops):
        below = list(stops[i].parts)[:list(stops[i].parts).index(part)]
        middle = HEIGHT / widest * (sum(_channels(stops[i].parts[p]) for p in below) + 0.88 * _channels(stops[i].parts[part]))
        top = HEIGHT / widest * sum(map(_channels, stops[j].parts.values())) + 0.36
        hue = theme.sequence_colour(HUE.get(part, 0))
        ax.plot([i + WIDTH / 2, j], [middle, middle], color=hue, linewidth=1.3, gid=f"detour-{part}")
        ax.add_patch(_arrow((j, middle), (j, top), hue))
    theme.no_axes(ax)
    ax.set(xlim=(-0.8, len(stops) - 0.2), ylim=(-0.95, STREAM + 0.55))
    theme.title(ax, "One layer, operation by operation",
                f"The higher the bar, the wider a token: {_channels(stops[0].parts[next(iter(stops[0].parts))])} channels in "
                f"the stream, up to {widest} on the way. Each branch ends in a plus.")
    return fig


def _detours(stops: Sequence[Stop]) -> Iterator[tuple[int, str, int]]:
    """(stop, part, stop) for each part that skips the stops which do not return it, as values skip norm and RoPE."""
    for i, (stop, following) in enumerate(pairwise(stops)):
        for part in stop.parts:
            if part and part not in following.parts and "" not in following.parts:
                yield i, part, next(j for j in range(i + 2, len(stops)) if "" in stops[j].parts)


def _channels(shape: tuple[int, ...]) -> int:
    channels = 1
    for size in shape[1:]:
        channels *= size
    return channels


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))


def _arrow(start: tuple[Any, ...], end: tuple[Any, ...], colour: ColorType) -> FancyArrowPatch:
    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=colour, linewidth=1.3, shrinkA=1, shrinkB=1)
