"""Found and computed: how much of each prompt came out of the prefix cache."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_found_tokens(found: Mapping[int, int], lengths: Mapping[int, int], *, ax: Axes | None = None) -> Figure:
    """A bar for each sequence: the tokens found in the cache, hatched, and those that went through the model.

    found, lengths: {seq_id: tokens of its prompt that were found, tokens of its prompt}. Raises ValueError where more was found
    than there is.
    """
    for seq_id, hits in found.items():
        check(0 <= hits <= lengths[seq_id], f"tokens found of sequence {seq_id}", hits, f"0 to {lengths[seq_id]}, its prompt",
              "pass the lengths of the prompts")
    fig, ax = theme.canvas(ax, 8, 0.4 * len(found) + 1.0)
    for row, (seq_id, hits) in enumerate(found.items()):
        colour = theme.prompt_colour(seq_id)
        ax.barh(-row, hits, 0.7, color=theme.mode().paper, edgecolor=colour, hatch=theme.SHARED_HATCH, gid=f"found-{seq_id}")
        ax.barh(-row, lengths[seq_id] - hits, 0.7, left=hits, color=colour, edgecolor=colour, gid=f"computed-{seq_id}")
    ax.set_yticks([-row for row in range(len(found))], [f"sequence {seq_id}" for seq_id in found], color=theme.mode().ink)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("prompt tokens")
    theme.title(ax, "Found and computed", f"Hatched: {sum(found.values())} tokens found in the cache. Solid: "
                f"{sum(lengths[s] for s in found) - sum(found.values())} that went through the model.")
    return fig
