"""What a whole consists of: a bar for each thing, cut into its parts."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_part_shares(wholes: Mapping[str, Mapping[str, float]], *, of: str, title: str, caption: str,
                     ax: Axes | None = None) -> Figure:
    """A bar for each whole, all of one length, with the shares of its parts written in.

    wholes: {name: {part: how much}}. of: what is shared out. A part keeps its colour in all bars. Raises ValueError for none.
    """
    check(bool(wholes) and all(sum(parts.values()) > 0 for parts in wholes.values()), "wholes", dict(wholes),
          "one or more, none empty", "leave out what has no parts")
    fig, ax = theme.canvas(ax, 9.5, 1.5 + 0.42 * len(wholes))
    m, names = theme.mode(), list(dict.fromkeys(part for parts in wholes.values() for part in parts))
    for row, parts in enumerate(wholes.values()):
        left, total = 0.0, sum(parts.values())
        for place, part in enumerate(names):
            share = parts.get(part, 0) / total
            ax.barh(-row, share, 0.72, left, color=theme.sequence_colour(place), label=None if row else part,
                    gid=f"{row}-{part}")
            if share >= 0.05:
                ax.text(left + share / 2, -row, f"{share:.0%}", ha="center", va="center", fontsize=9,
                        color=theme.text_on(theme.sequence_colour(place)))
            left += share
    ax.set_yticks(range(0, -len(wholes), -1), list(wholes), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=f"share of {of}", xlim=(0, 1))
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1, 1.05))
    theme.title(ax, title, caption)
    return fig
