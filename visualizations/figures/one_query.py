"""Attention in one picture: a token's scores with every token, and the shares that softmax makes of those it may see."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

SCORES_AT, TALL = 1.45, 0.95  # where the row of scores stands above the row of shares, and the height of each


@theme.in_both_modes
def plot_one_query(scores: Sequence[float], tokens: Sequence[str], *, seq_id: int = 0, title: str = "What one token listens to",
                   ax: Axes | None = None) -> Figure:
    """Above the scores of one query with the keys up to its own, below the shares that softmax makes of them.

    scores: one number for each token that the query sees, its own last. tokens: the whole text; those behind the query are
    drawn empty, since a causal mask hides them. Raises ValueError without scores, for one that is no finite number, and
    for more scores than tokens.
    """
    numbers = np.asarray(scores, dtype=float)
    check(numbers.ndim == 1 and len(numbers) > 0 and bool(np.isfinite(numbers).all()), "scores", scores,
          "one or more finite numbers", "leave out masked keys")
    check(len(numbers) <= len(tokens), "len(tokens)", len(tokens), f"{len(numbers)} or more, one per score",
          "pass the text of every token")
    shares = np.exp(numbers - numbers.max())
    shares /= shares.sum()
    fig, ax = theme.canvas(ax, 10, 3.3)
    m, dark, light = theme.mode(), theme.prompt_colour(seq_id), theme.decode_colour(seq_id)
    low, span = min(0.0, numbers.min()), max(0.0, numbers.max()) - min(0.0, numbers.min()) or 1.0
    zero = SCORES_AT - low / span * TALL
    ax.axhline(zero, color=m.line, linewidth=0.8)
    ax.axhline(0, color=m.line, linewidth=0.8)
    for i, (score, share) in enumerate(zip(numbers, shares, strict=True)):
        ax.add_patch(Rectangle((i - 0.39, zero), 0.78, score / span * TALL, linewidth=0, facecolor=light, gid=f"score-{i}"))
        ax.add_patch(Rectangle((i - 0.39, 0), 0.78, share / shares.max() * TALL, linewidth=0, facecolor=dark, gid=f"share-{i}"))
        ax.text(i, share / shares.max() * TALL + 0.04, f"{share:.0%}", ha="center", va="bottom", fontsize=8, color=m.ink)
    for i in range(len(numbers), len(tokens)):
        for bottom in (SCORES_AT, 0):
            ax.add_patch(Rectangle((i - 0.39, bottom), 0.78, TALL, linewidth=0, facecolor=m.paper, edgecolor=m.line,
                                   hatch="...", gid=f"hidden-{i}"))
    ax.set_xticks(range(len(tokens)), [repr(t)[1:-1].strip() or "·" for t in tokens], color=m.ink, parse_math=False,
                  rotation=35 if max(map(len, tokens)) > 5 else 0, ha="right" if max(map(len, tokens)) > 5 else "center",
                  rotation_mode="anchor")
    ax.get_xticklabels()[len(numbers) - 1].set_fontweight("bold")
    ax.set_yticks([SCORES_AT + TALL / 2, TALL / 2], ["score:\nquery · key", "share:\nsoftmax"], color=m.ink)
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.set(xlim=(-0.6, len(tokens) - 0.4), ylim=(-0.03, SCORES_AT + TALL + 0.06))
    word = repr(tokens[len(numbers) - 1])[1:-1].strip() or "·"
    theme.title(ax, title, f"The query is that of “{word}”. It gets the mean of the values, weighted by the shares."
                + (" Dotted: later tokens, hidden." if len(tokens) > len(numbers) else ""))
    return fig
