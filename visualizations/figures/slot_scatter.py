"""Where the step's keys go: from a row of tokens to slots all over the cache."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted
from visualizations import theme

NUMBERED = 32  # slots, or tokens, that have room for their numbers
DROP = 3.2  # how far below the tokens the cache is drawn, in cells


@theme.in_both_modes
def plot_slot_scatter(slot_mapping: Sequence[int], block_size: int, *, owners: Sequence[int] | None = None,
                      blocks: Sequence[int] | None = None, held: Mapping[int, int | None] | None = None,
                      light: Collection[int] = (), ax: Axes | None = None) -> Figure:
    """A line from each token of a step to the slot that takes its key; a token with slot -1 is crossed out.

    owners: whose each token is (all of sequence 0 by default). blocks: the ones to draw, in this order; by default those
    written to. held: {slot: owner} of what lies there already, None where several share it. light: owners whose tokens are
    drawn light, such as decodes.
    Raises ValueError for a slot in a block that is not drawn.
    """
    slots = [int(s) for s in slot_mapping]
    owners = list(owners) if owners is not None else [0] * len(slots)
    blocks = list(blocks) if blocks is not None else sorted({s // block_size for s in slots if s >= 0})
    check(all(s // block_size in blocks for s in slots if s >= 0), "slot_mapping", slots, f"slots of blocks {blocks}",
          "draw the blocks that are written to")
    gap, held = 0.9, held or {}
    place = {block: i * (block_size + gap) for i, block in enumerate(blocks)}
    width = max(len(blocks) * (block_size + gap) - gap, len(slots))
    step = min(2.4, width / len(slots))
    left = (width - step * len(slots)) / 2
    fig, ax = theme.canvas(ax, 10, 2.5)
    m = theme.mode()
    unit = width / 46  # so that a wide cache does not squeeze the picture flat
    size, deep = unit * 1.5, unit * DROP * 2.2
    for block, x in place.items():
        ax.add_patch(FancyBboxPatch((x - 0.1, -deep - size / 2 - 0.12 * unit), block_size + 0.2, size + 0.24 * unit,
                                    boxstyle=f"round,pad=0,rounding_size={theme.ROUNDING * unit}", facecolor=m.free,
                                    edgecolor=m.muted, linewidth=1.0))
        ax.text(x + block_size / 2, -deep - size, str(block), ha="center", va="top", fontsize=9, color=m.ink)
        for slot in range(block * block_size, (block + 1) * block_size):
            if slot in held:
                owner_before, where = held[slot], (x + slot % block_size + 0.08, -deep - size / 2)
                look: dict[str, Any] = (dict(facecolor="none", edgecolor=m.muted, hatch=theme.SHARED_HATCH)
                                        if owner_before is None else dict(facecolor=theme.decode_colour(owner_before)))
                ax.add_patch(Rectangle(where, 0.84, size, linewidth=0, alpha=0.45, gid=f"held-{slot}", **look))
    wide = 0.84 * min(step, 2.2)  # of a token's box

    def fitting(cells: float, largest: int) -> float:
        """The size of a number's text, in points, in a box of so many cells: 6.6 inches are left beside the axis's words."""
        return min(8.0, 72 * cells * 6.6 / width / (0.62 * len(str(largest))))

    of_token, of_slot = fitting(wide, len(slots) - 1), fitting(0.84, max(*slots, block_size * (max(blocks) + 1) - 1))
    for i, (slot, owner) in enumerate(zip(slots, owners, strict=True)):
        shade = (theme.decode_colour if owner in light else theme.prompt_colour)(owner)
        x = left + step * (i + 0.5)
        ax.add_patch(Rectangle((x - wide / 2, -size / 2), wide, size, facecolor=shade, linewidth=0, gid=f"token-{i}"))
        if slot < 0:
            ax.plot(x, 0, marker="x", color=m.ink, markersize=9, markeredgewidth=2, gid=f"dropped-{i}")
            continue
        to = place[slot // block_size] + slot % block_size + 0.5
        ax.add_patch(Rectangle((to - 0.42, -deep - size / 2), 0.84, size, facecolor=shade, linewidth=0, gid=f"written-{slot}"))
        ax.plot([x, to], [-size / 2 - 0.1 * unit, -deep + size / 2 + 0.1 * unit], color=theme.sequence_colour(owner),
                linewidth=1.1, gid=f"line-{slot}")
        if len(slots) <= NUMBERED:
            ax.text(x, 0, str(i), ha="center", va="center", fontsize=of_token, color=theme.text_on(shade))
    if len(blocks) * block_size <= NUMBERED:
        written = {slot: theme.text_on((theme.decode_colour if owner in light else theme.prompt_colour)(owner))
                   for slot, owner in zip(slots, owners, strict=True)}
        for block, x in place.items():
            for slot in range(block * block_size, (block + 1) * block_size):
                ax.text(x + slot % block_size + 0.5, -deep, str(slot), ha="center", va="center", fontsize=of_slot,
                        color=written.get(slot, m.muted if slot not in held else m.ink))
    theme.no_axes(ax)
    ax.set_yticks([0, -deep], ["tokens of\nthe step", "slots of\nthe cache"], color=m.ink)
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(-0.6, width + 0.6), ylim=(-deep - 2.0 * size, 0.8 * size))
    dropped, target = sum(s < 0 for s in slots), {s // block_size for s in slots if s >= 0}
    kept = f" Crossed out: slot -1, {dropped} of {len(slots)} {'is' if dropped == 1 else 'are'} not stored." if dropped else ""
    theme.title(ax, "Storing is a scatter", f"{counted(len(slots) - dropped, 'key goes', 'keys go')} to "
                f"{counted(len(target), 'block')} in one launch; a block's "
                f"number stands below it.{kept}")
    return fig
