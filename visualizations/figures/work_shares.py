"""Who reads how many keys: a program for each sequence, against equal shares of the batch's keys."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from nanovllm.utils.checks import check
from visualizations import theme

HEIGHT = 0.74


@theme.in_both_modes
def plot_work_shares(context_lens: ArrayLike, num_shares: int, *, seq_ids: list[int] | None = None,
                     ax: Axes | None = None) -> Figure:
    """One decode step of attention on a machine that runs `num_shares` programs at once, cut in two ways.

    context_lens: keys of each sequence. Above, a program reads one sequence's keys; the next sequence goes to whoever is
    done first. Below, all keys laid end to end are cut into `num_shares` equal pieces. Raises ValueError for a context
    without keys, or less than one share.
    """
    lengths = np.asarray(context_lens).tolist()
    check(bool(lengths) and min(lengths) >= 1, "context_lens", lengths, "1 or more keys each", "leave padding sequences out")
    check(num_shares >= 1, "num_shares", num_shares, "1 or more", "a machine runs at least one program")
    ids = seq_ids if seq_ids is not None else list(range(len(lengths)))
    whole, busy = [], [0] * num_shares
    for seq_id, length in zip(ids, lengths):
        program = busy.index(min(busy))
        whole.append((program, busy[program], seq_id, length))
        busy[program] += length
    share, cut, place = -(-sum(lengths) // num_shares), [], 0
    for seq_id, length in zip(ids, lengths):
        end = place + length
        while place < end:
            program, offset = divmod(place, share)
            piece = min(end - place, share - offset)
            cut.append((program, offset, seq_id, piece))
            place += piece
    fig, ax = theme.canvas(ax, 10, min(6.2, 1.8 + 0.34 * num_shares))
    m = theme.mode()
    for kind, pieces, first, last in (("whole", whole, 0, max(busy)), ("cut", cut, num_shares + 1, share)):
        for program, offset, seq_id, count in pieces:
            ax.add_patch(Rectangle((offset, -first - program - HEIGHT / 2), count, HEIGHT, linewidth=0.8, edgecolor=m.paper,
                                   facecolor=theme.sequence_colour(seq_id), gid=f"{kind}-{program}"))
        ax.plot([last] * 2, [-first + 0.5, -first - num_shares + 0.5], color=m.ink, linewidth=1.1, gid=f"end-{kind}")
        ax.annotate(f"done after {last} keys", (last, -first - num_shares / 2 + 0.5), (5, 0), textcoords="offset points",
                    fontsize=9.5, color=m.ink, va="center")
    middle = (num_shares - 1) / 2
    ax.set_yticks([-middle, -num_shares - 1 - middle], ["a program\nfor each\nsequence", "equal\nshares"], color=m.ink)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="keys read, one after the other", ylabel=f"{num_shares} programs at once", xlim=(0, max(busy) * 1.22),
           ylim=(-2 * num_shares - 0.4, 0.8))
    theme.title(ax, "The same keys, cut in two ways",
                f"Colours are sequences. Equal shares are done {max(busy) / share:.1f} times sooner; the pieces of a sequence "
                "that was cut must then be joined.")
    return fig
