"""The exponential race: every token waits for a random time, and the first to arrive is the one drawn."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from visualizations import theme
from visualizations.figures.next_token import _label


@theme.in_both_modes
def plot_exponential_race(arrivals: ArrayLike, probabilities: ArrayLike, decode: Callable[[int], str], *,
                          seq_id: int = 0, top: int = 12, ax: Axes | None = None) -> Figure:
    """A bar for each of the `top` first arrivals, as long as the token waited.

    arrivals, probabilities: [vocab_size], as lists, arrays or CPU tensors; a token that waits for ever (infinity) is not
    in the race. decode: token id -> its text. seq_id gives the colour.
    """
    times, p = np.asarray(arrivals, dtype=float), np.asarray(probabilities, dtype=float)
    running = np.flatnonzero(np.isfinite(times))
    ids = running[np.argsort(times[running], kind="stable")][:top].tolist()
    fig, ax = theme.canvas(ax, 8, 0.27 * len(ids) + 1.4)
    m = theme.mode()
    for place, token in enumerate(ids):
        first = place == 0
        ax.barh(-place, times[token], 0.24, color=theme.prompt_colour(seq_id) if first else theme.decode_colour(seq_id),
                gid="winner" if first else "runner")
        ax.plot(times[token], -place, "o", markersize=7, color=theme.sequence_colour(seq_id) if first else m.muted)
        ax.annotate(f"p = {p[token]:.3f}" + ("  drawn" if first else ""), (times[token], -place), (8, 0),
                    textcoords="offset points", va="center", fontsize=9, color=m.ink if first else m.muted,
                    fontweight="bold" if first else "normal")
    ax.set_yticks([-i for i in range(len(ids))], [_label(decode(t)) for t in ids], parse_math=False,
                  family="DejaVu Sans Mono", color=m.ink)
    ax.set(xlabel="time of arrival: an exponential random time of rate p", xlim=(0, times[ids[-1]] * 1.22),
           ylim=(-len(ids) + 0.4, 0.6))
    likelier = int((p > p[ids[0]]).sum())
    theme.title(ax, "The race", f"The first {len(ids)} of {len(running)} to arrive. Likely tokens hurry, yet "
                + (f"{likelier} likelier than the winner came later." if likelier else "this time the likeliest won."))
    return fig
