"""Where a step's time goes: its parts, end to end."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_step_parts(steps: Mapping[str, Mapping[str, float]], *, waiting: str = "GPU waits for the host",
                    floors: Mapping[str, float] | None = None, done: Mapping[str, float] | None = None,
                    title: str = "Where a step's time goes", ax: Axes | None = None) -> Figure:
    """A bar for each step, its parts laid end to end.

    steps: {step: {part: milliseconds}}, parts in the same order in each. waiting: the part in which nothing is computed,
    dotted. floors: {step: the least time it can take}, a line across its bar. done: {step: when it was done}, of steps whose
    parts overlap: their bar is longer than the step, and a dashed line in it says where the step ended. Raises ValueError for
    a negative time, and for a step that ends behind its bar.
    """
    parts = list(dict.fromkeys(part for step in steps.values() for part in step))
    lowest = min(ms for step in steps.values() for ms in step.values())
    check(lowest >= 0, "milliseconds", lowest, "0 or more", "a part cannot take less than no time")
    fig, ax = theme.canvas(ax, 10, 0.5 * len(steps) + 1.9)
    m = theme.mode()
    longest, told = max(sum(step.values()) for step in steps.values()), set()
    for y, (name, step) in enumerate(steps.items()):
        left = 0.0
        for place, part in enumerate(parts):
            ms = step.get(part, 0.0)
            idle = part == waiting
            shade = m.paper if idle else theme.prompt_colour(place)
            ax.barh(-y, ms, 0.66, left, color=shade, edgecolor=m.muted if idle else m.paper, linewidth=0.8,
                    gid=f"{part}-{name}", hatch=theme.WASTE_HATCH if idle else None,
                    label=part if part in step and part not in told else None)
            if part in step:
                told.add(part)
            if 0.055 * longest < ms < 0.98 * sum(step.values()):  # of a part that is nearly all, the sum says enough
                ax.text(left + ms / 2, -y, f"{ms:.2f}", ha="center", va="center", fontsize=8.5,
                        color=m.ink if idle else theme.text_on(shade), bbox=dict(facecolor=m.paper, edgecolor="none", pad=0.8)
                        if idle else None)
            left += ms
        ended = (done or {}).get(name, left)
        check(ended <= left * 1.001, f"the end of step {name!r}", ended, f"at most the sum of its parts, {left:.4g}",
              "give its waiting as a part")
        if done and name in done:
            ax.plot([ended] * 2, [-y - 0.42, -y + 0.42], color=m.ink, linewidth=1.6, linestyle=(0, (2.5, 1.5)),
                    gid=f"done-{name}")
        ax.annotate(f"{ended:.2f} ms", (left, -y), (5, 0), textcoords="offset points", va="center", fontsize=9.5, color=m.ink)
        if floors and name in floors:
            ax.plot([floors[name]] * 2, [-y - 0.42, -y + 0.42], color=m.ink, linewidth=2.2, gid=f"floor-{name}")
    ax.set_yticks([-y for y in range(len(steps))], list(steps), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="milliseconds", xlim=(0, longest * 1.14), ylim=(-len(steps) + 0.4, 0.6))
    below = ax.transAxes + ScaledTranslation(0, -0.45, fig.dpi_scale_trans)  # inches: under the axis's own words
    theme.legend(ax, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=6)
    most = max(steps, key=lambda name: steps[name].get(waiting, 0.0) / sum(steps[name].values()))
    share = steps[most].get(waiting, 0.0) / (done or {}).get(most, sum(steps[most].values()))
    caption = "Parts that follow one another."
    if share:
        most_of = f"at most {share:.0%} of a step ({most})" if share >= 0.005 else "less than 1% of any step"
        caption = f"Dotted: nothing is computed, {most_of}."
    theme.title(ax, title, caption + (" The line across a bar is the floor." if floors else "")
                + (" Dashed: the step was done; as much as the bar is longer, kernels ran side by side." if done else ""))
    return fig
