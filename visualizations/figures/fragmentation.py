"""Fragmentation: memory reserved for the longest answer possible, against memory taken block by block."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

HEIGHT = 0.62


@theme.in_both_modes
def plot_fragmentation(lengths: list[int], *, block_size: int, max_len: int, seq_ids: list[int] | None = None,
                       ax: Axes | None = None) -> Figure:
    """The same requests in two memories, in token slots: one strip reserves `max_len` slots each, one takes blocks.

    lengths: tokens that each request holds in the end. seq_ids: whose they are, 0, 1, 2 … unless given. Coloured slots
    hold a token; dotted ones are taken and never used. Raises ValueError for a length above max_len.
    """
    check(bool(lengths) and all(0 < n <= max_len for n in lengths), "lengths", lengths, f"1 to max_len={max_len} tokens each",
          "raise max_len or shorten the requests")
    fig, ax = theme.canvas(ax, 10, 2.7)
    m = theme.mode()
    blocks = [-(-n // block_size) * block_size for n in lengths]
    ids = seq_ids if seq_ids is not None else range(len(lengths))
    total = max_len * len(lengths)
    for y, taken in ((1, [max_len] * len(lengths)), (0, blocks)):
        x, above = 0, -float(total)
        for seq_id, used, slots in zip(ids, lengths, taken):
            ax.add_patch(Rectangle((x, y - HEIGHT / 2), slots, HEIGHT, facecolor=m.paper, edgecolor=m.muted, linewidth=0,
                                   hatch=theme.WASTE_HATCH, gid=f"waste-{y}"))
            ax.add_patch(Rectangle((x, y - HEIGHT / 2), used, HEIGHT, facecolor=theme.prompt_colour(seq_id), linewidth=0,
                                   gid=f"used-{y}"))
            ax.add_patch(Rectangle((x, y - HEIGHT / 2), slots, HEIGHT, facecolor="none", edgecolor=m.muted, linewidth=0.8))
            middle, room = x + used / 2, total / 45
            if used > room:
                ax.text(middle, y, str(seq_id), ha="center", va="center", fontsize=9,
                        color=theme.text_on(theme.prompt_colour(seq_id)))
            elif middle - above > room:  # above a narrow one, unless another number stands there
                above = middle
                ax.text(middle, y + HEIGHT / 2 + 0.02, str(seq_id), ha="center", va="bottom", fontsize=9, color=m.ink)
            x += slots
        ax.text(x + total * 0.01, y, f"{1 - sum(lengths) / sum(taken):.0%} wasted", va="center", fontsize=9.5, color=m.ink)
    ax.set_yticks([1, 0], [f"{max_len} slots\nfor each", f"blocks of\n{block_size} slots"], color=m.ink)
    ax.set(xlabel="token slots of the KV cache", xlim=(0, total * 1.13), ylim=(-0.5, 1.5))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    theme.title(ax, f"The same {len(lengths)} requests, reserved and paged",
                f"Dotted: taken, never used. Where {len(lengths)} reservations fit, blocks hold "
                f"{total * len(lengths) // sum(blocks)} requests of this kind.")
    return fig
