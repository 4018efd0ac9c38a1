"""What each round fed, and what the cache held before: the life of one request, position by position."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_rounds(rounds: Sequence[tuple[int, int] | None], num_prompt: int, *, seq_id: int = 0,
                ax: Axes | None = None) -> Figure:
    """A row a round, a square a position: fed in this round, in the cache since an earlier one, or skipped.

    rounds: positions [start, end) that each fed, or None where the request was preempted and its cache dropped. Dark squares
    are prompt, light ones generated, pale ones cached; a dotted one lies before a token that was fed, and is in no cache.
    Raises ValueError for a round that feeds nothing.
    """
    fed = [r for r in rounds if r is not None]
    check(bool(fed) and all(0 <= start < end for start, end in fed), "rounds", list(rounds),
          "(start, end) with start < end, or None",
          "leave out rounds that feed nothing")
    width = max(end for _, end in fed)
    fig, ax = theme.canvas(ax, 10, min(4.6, 1.5 + 0.13 * len(rounds)))
    m, struck = theme.mode(), 0
    cached: set[int] = set()
    skipped: set[int] = set()
    squares: dict[str, list[Any]] = {"prefill": [], "decode": [], "cached": [], "skipped": []}
    for y, span in enumerate(rounds):
        if span is None:
            ax.add_patch(Rectangle((0, y + 0.1), width, 0.8, facecolor=m.paper, edgecolor=theme.sequence_colour(seq_id),
                                   linewidth=0, hatch=theme.STRIKE_HATCH, gid=f"preempted-{y}"))
            ax.text(width * 1.01, y + 0.5, "preempted", va="center", fontsize=9, color=m.ink)
            cached, struck = set(), struck + 1
            continue
        for x in range(span[1]):
            kind = "prefill" if x < num_prompt else "decode"
            if x < span[0]:
                kind = "cached" if x in cached else "skipped"
                skipped |= {x} if kind == "skipped" else set()
            squares[kind].append(Rectangle((x, y), 1, 1))
        cached |= set(range(*span))
    looks: dict[str, dict[str, Any]] = {
        "prefill": dict(facecolor=theme.prompt_colour(seq_id)), "decode": dict(facecolor=theme.decode_colour(seq_id)),
        "cached": dict(facecolor=theme.mix(m.free, theme.sequence_colour(seq_id), 0.1)),
        "skipped": dict(facecolor=m.paper, hatch=theme.WASTE_HATCH)}
    for kind, patches in squares.items():
        edge = m.muted if kind == "skipped" else m.paper
        ax.add_collection(PatchCollection(patches, linewidth=0.5, edgecolor=edge, gid=kind, **looks[kind]))
    ax.axvline(num_prompt, color=m.ink, linewidth=1.1, linestyle=(0, (5, 3)), gid="prompt ends")
    step = 1 if width <= 20 else 10 * (1 + width // 150)
    ax.set_xticks([x + 0.5 for x in range(0, width, step)], [str(x) for x in range(0, width, step)])
    ax.set_yticks([y + 0.5 for y in range(0, len(rounds), 5)],
                  [str(y) for y in range(0, len(rounds), 5)])
    ax.set(xlim=(-0.5, width * 1.12 if struck else width + 0.5), ylim=(len(rounds) + 0.3, -0.3), xlabel="place in the text",
           ylabel="round")
    told = f"Each token is fed once{', and once more after a preemption' if struck else ''}; pale: cached by then."
    if skipped:
        told = (f"Dotted: {len(skipped)} tokens that were never fed; the model takes the one behind them for "
                f"position {min(skipped)}.")
    theme.title(ax, "What each round fed", told + " Dashed: the prompt's end.")
    return fig
