"""Grouped-query attention: which query heads read the keys and values of which head."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_head_groups(num_heads: int, num_kv_heads: int, *, ax: Axes | None = None) -> Figure:
    """Query heads above, key/value heads below, a line from each query head to the one that it reads.

    Raises ValueError when the query heads cannot be shared out evenly.
    """
    check(num_kv_heads > 0 and num_heads % num_kv_heads == 0, "num_heads", num_heads, f"a multiple of {num_kv_heads} key heads",
          "take both from one config")
    group = num_heads // num_kv_heads
    fig, ax = theme.canvas(ax, 10, 2.9)
    m = theme.mode()
    step = min(1.0, 16 / num_heads)
    for head in range(num_heads):
        kv = head // group
        colour, middle = theme.sequence_colour(kv), (kv * group + (group - 1) / 2) * step
        ax.plot([head * step, middle], [1.02, 0.42], color=colour, linewidth=1.8, gid=f"line-{head}")
        _box(ax, head * step, 1.2, 0.78 * step, theme.decode_colour(kv), colour, str(head))
        if head % group == 0:
            _box(ax, middle, 0.24, 0.78 * step, theme.prompt_colour(kv), colour, str(kv))
    for text, y in (("query heads", 1.2), ("key and value heads,\nthe ones that are cached", 0.24)):
        ax.text(-0.75 * step, y, text, ha="right", va="center", fontsize=9.5, color=m.ink)
    theme.no_axes(ax)
    ax.set(xlim=(-4.4, max(11.6, num_heads * step)), ylim=(-0.1, 1.55))
    times = "its own keys" if group == 1 else f"keys that {group} query heads share"
    theme.title(ax, f"{num_heads} query heads, {num_kv_heads} heads of keys and values",
                f"Each query head reads {times}: the cache holds {num_kv_heads} heads per token in place of {num_heads}.")
    return fig


def _box(ax: Axes, x: float, y: float, size: float, face: tuple[float, float, float], edge: str, text: str) -> None:
    ax.add_patch(FancyBboxPatch((x - size / 2, y - 0.17), size, 0.34, boxstyle="round,pad=0,rounding_size=0.06", facecolor=face,
                                edgecolor=edge, linewidth=1.1))
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=theme.text_on(face))
