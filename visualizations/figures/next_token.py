"""The next token: the most likely candidates and the one that was drawn."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from visualizations import theme


@theme.in_both_modes
def plot_next_token(probabilities: ArrayLike, decode: Callable[[int], str], *, drawn: int | None = None,
                    seq_id: int = 0, top: int = 12, title: str = "The next token", ax: Axes | None = None) -> Figure:
    """The `top` most likely next tokens as bars.

    probabilities: [vocab_size], as a list, array or CPU tensor. decode: token id -> its text. drawn: the id the sampler
    took, shown even when it is not among the top. seq_id gives the colour.
    """
    p = np.asarray(probabilities, dtype=float)
    ids = np.argsort(-p, kind="stable")[:top].tolist()
    if drawn is not None and drawn not in ids:
        ids.append(drawn)
    fig, ax = theme.canvas(ax, 8, 0.27 * len(ids) + 1.3)
    m = theme.mode()
    for place, token in enumerate(ids):
        is_drawn = token == drawn
        ax.barh(-place, p[token], 0.72, color=theme.prompt_colour(seq_id) if is_drawn else theme.decode_colour(seq_id),
                gid="drawn" if is_drawn else "candidate")
        ax.annotate(f"{p[token]:.3f}" + ("  drawn" if is_drawn else ""), (p[token], -place), (4, 0),
                    textcoords="offset points", va="center", fontsize=9, color=m.ink if is_drawn else m.muted,
                    fontweight="bold" if is_drawn else "normal")
    ax.set_yticks([-i for i in range(len(ids))], [_label(decode(t)) for t in ids], parse_math=False,
                  family="DejaVu Sans Mono", color=m.ink)
    ax.set(xlabel="probability", xlim=(0, p[ids].max() * 1.18), ylim=(-len(ids) + 0.4, 0.6))
    rest = 1 - p[ids].sum()
    theme.title(ax, title, f"{len(ids)} of {len(p)} tokens; all the others share {max(rest, 0):.3f}.")
    return fig


def _label(text: str, longest: int = 18) -> str:
    label = repr(text)
    return label if len(label) <= longest else label[: longest - 1] + "…"
