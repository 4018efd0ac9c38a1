"""A ladder of stages, each added to the one before it: what the speed became, and by which factor."""

from collections.abc import Mapping
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_ladder(stages: Mapping[str, float], *, unit: str, title: str, source: str = "", ax: Axes | None = None) -> Figure:
    """A bar for each stage, from top to bottom, on an axis where equal lengths are equal factors.

    stages: {stage: rate}, each with all those before it. unit: of the rates. source: where they were measured, for the
    caption. The dark end of a bar is what the stage gains over the one above. Raises ValueError for a rate of 0 or less, and
    without two stages.
    """
    check(len(stages) >= 2 and all(rate > 0 for rate in stages.values()), "stages", dict(stages),
          "two rates or more, each above 0", "leave out what was not measured")
    fig, ax = theme.canvas(ax, 10, 0.42 * len(stages) + 1.5)
    m, rates = theme.mode(), list(stages.values())
    low, high = min(rates) / 3, max(rates)
    for y, (before, rate) in enumerate(pairwise([rates[0], *rates])):
        kept = min(before, rate)
        ax.barh(-y, kept - low, 0.64, low, color=theme.decode_colour(0), gid=f"kept-{y}")
        if rate > kept:
            ax.barh(-y, rate - kept, 0.64, kept, color=theme.prompt_colour(0), gid=f"gained-{y}")
        shown = f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"
        ax.annotate(shown + (f"  ×{rate / before:.3g}" if y else ""), (rate, -y), (6, 0), textcoords="offset points",
                    va="center", fontsize=9.5, color=m.ink)
    ax.set_yticks([-y for y in range(len(rates))], list(stages), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set(xscale="log", xlabel=f"{unit} (each mark ten times the one before)", ylim=(-len(rates) + 0.4, 0.6),
           xlim=(low, high * (high / low) ** 0.35))
    ax.set_xticks([10.0**power for power in range(-3, 10) if low <= 10.0**power <= high * 1.5])
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.minorticks_off()
    theme.title(ax, title, "Dark: what a stage gains over the line above; equal lengths are equal factors."
                + (f" {source}." if source else ""))
    return fig
