"""How often drafts were right, by their place in the step."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_acceptance(counts: Mapping[str, Sequence[Sequence[int]]], *, title: str = "How often a draft is kept",
                    ax: Axes | None = None) -> Figure:
    """A group of bars for each place in a step, a bar for each drafter: the share of its drafts there that were kept.

    counts: {name: [[drafted, accepted] of the first draft of a step, of the second, ...]}, as
    `engine.speculation.counts.by_position` has them. Raises ValueError without a draft to show.
    """
    check(bool(counts) and all(any(drafted for drafted, _ in places) for places in counts.values()), "counts",
          {name: list(places) for name, places in counts.items()}, "one drafted token or more of each",
          "let it draft something first")
    fig, ax = theme.canvas(ax, 8, 2.7)
    m, width = theme.mode(), 0.8 / len(counts)
    longest = max(map(len, counts.values()))
    for nth, (name, places) in enumerate(counts.items()):
        for position, (drafted, accepted) in enumerate(places):
            if not drafted:
                continue
            x, share = position + 1 - 0.4 + (nth + 0.5) * width, accepted / drafted
            ax.bar(x, share, width * 0.9, color=theme.prompt_colour(nth), label=name if position == 0 else None,
                   gid=f"{name}-{position + 1}")
            ax.annotate(f"{share:.0%}\n{accepted} of {drafted}", (x, share), (0, 2), textcoords="offset points", ha="center",
                        fontsize=8, color=m.muted)
    ax.set(xlabel="place of the draft in its step", ylabel="share that was kept", ylim=(0, 1.3), xlim=(0.4, longest + 0.6),
           xticks=range(1, longest + 1), yticks=[0, 0.5, 1])
    if len(counts) > 1:
        theme.legend(ax, loc="upper right", ncols=len(counts))
    theme.title(ax, title, "A draft is kept only if all drafts before it in the step were.")
    return fig
