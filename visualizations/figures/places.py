"""A place in the row of a step's tokens is not a position in a text."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_places(cu_seqlens_q: Sequence[int], positions: Sequence[int], *, seq_ids: Sequence[int] | None = None,
                ax: Axes | None = None) -> Figure:
    """A dot for each token of a step: its place in the row against its position in its sequence.

    cu_seqlens_q: [num_seqs + 1]. positions: [num_tokens]. Raises ValueError when the two do not belong together.
    """
    check(len(cu_seqlens_q) > 1 and cu_seqlens_q[-1] == len(positions), "cu_seqlens_q", list(cu_seqlens_q),
          f"a list that ends in {len(positions)}, the number of positions", "take both from one step")
    ids = list(range(len(cu_seqlens_q) - 1)) if seq_ids is None else list(seq_ids)
    fig, ax = theme.canvas(ax, 8, 3.2)
    ax.plot(range(len(positions)), color=theme.mode().muted, linestyle=(0, (4, 3)), label="counted along the row")
    for place, seq_id in enumerate(ids):
        start, end = cu_seqlens_q[place], cu_seqlens_q[place + 1]
        colour = theme.phase_colour(seq_id, "decode" if end - start == 1 else "prefill")
        ax.scatter(range(start, end), positions[start:end], s=30, color=colour, label=f"sequence {seq_id}")
    ax.set_xticks(range(0, len(positions), 5))
    ax.set(xlabel="place in the row", ylabel="position in the text")
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1, 1.03))
    theme.title(ax, "A place in the row is not a position",
                "Each sequence goes on where it stopped; a count along the row knows nothing of that.")
    return fig
