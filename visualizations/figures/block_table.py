"""Block tables: which physical blocks each running sequence holds, and the whole cache they point into."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from visualizations import theme

BLOCKS_IN_A_ROW = 14


@theme.in_both_modes
def plot_block_tables(trace: Trace, record: StepRecord | None = None, *, physical: bool = True,
                      lit: int | None = None, copied: tuple[int, int] | None = None, title: str = "",
                      caption: str | None = None, ax: Axes | None = None) -> Figure:
    """The block table of every running sequence after one step, above the physical blocks of the whole cache.

    record: the step to show; None is the last of `trace`. trace.meta must hold block_size and prompts. A block is
    filled as far as its slots hold keys and values. physical=False leaves the lower part out. lit: a block to ring wherever it
    stands. copied: (source, target) of a block that was copied, an arrow in the lower part. title, caption: instead of the
    usual ones.
    """
    record = record or trace[-1]
    num_rows = -(-len(record.blocks) // BLOCKS_IN_A_ROW) if physical else 0
    height = len(record.block_tables) + num_rows + (0.3 if physical else 0)
    fig, ax = theme.canvas(ax, 7.8, 0.425 * height + 0.72)
    owner = {block: seq_id for seq_id, table in reversed(record.block_tables.items()) for block in table}
    blocks = {b: _look(trace, record, b, owner.get(b)) for b in range(len(record.blocks))}

    y = height - 1
    for seq_id, table in record.block_tables.items():
        context = record.context_lens[seq_id]
        ax.text(-0.3, y + 0.43, f"sequence {seq_id}  {context} tokens", ha="right", va="center", fontsize=9.5,
                color=theme.mode().ink)
        for i, block in enumerate(table):
            theme.draw_block(ax, i, y, block, **_look(trace, record, block, seq_id))
            if block == lit:
                _ring(ax, i, y)
        y -= 1
    if physical:
        y -= 0.3
        ax.text(-0.3, y + 0.43, "the whole cache", ha="right", va="center", fontsize=9.5, color=theme.mode().muted)
        places = {block: (block % BLOCKS_IN_A_ROW, y - block // BLOCKS_IN_A_ROW) for block in blocks}
        for block, look in blocks.items():
            theme.draw_block(ax, *places[block], block, **look)
        if lit is not None:
            _ring(ax, *places[lit])
        if copied:
            (x, top), (to_x, to_top) = (places[block] for block in copied)
            bend = -0.35 if to_x > x else 0.35  # over the blocks between them
            ax.add_patch(FancyArrowPatch((x + 0.43, top + 0.86), (to_x + 0.43, to_top + 0.92), arrowstyle="-|>", gid="copied",
                                         mutation_scale=11, linewidth=1.5, color=theme.mode().ink, zorder=5,
                                         connectionstyle=f"arc3,rad={bend}"))

    theme.no_axes(ax)
    longest = max((len(t) for t in record.block_tables.values()), default=1)
    width = max(longest, min(len(record.blocks), BLOCKS_IN_A_ROW) if physical else 12)
    ax.set(xlim=(-4.4, width + 0.1), ylim=(-0.1, height), aspect="equal", anchor="NW")
    size = trace.meta["block_size"]
    theme.title(ax, f"{title or f'Block tables, step {record.step}'} (1 block = {size} tokens)",
                caption or _caption(record, physical))
    return fig


def _ring(ax: Axes, x: float, y: float) -> None:
    ax.add_patch(FancyBboxPatch((x - 0.04, y - 0.04), 0.94, 0.94, boxstyle=f"round,pad=0,rounding_size={theme.ROUNDING}",
                                facecolor="none", edgecolor=theme.mode().ink, linewidth=2.2, zorder=4, gid="lit"))


def _look(trace: Trace, record: StepRecord, block: int, seq_id: int | None) -> dict[str, Any]:
    """How to draw a block as `seq_id` sees it: its state, colours and how full it is."""
    look = {"state": record.blocks[block], "references": record.ref_counts.get(block, 1)}
    if seq_id is None:
        return look
    size = trace.meta["block_size"]
    start = record.block_tables[seq_id].index(block) * size
    filled = _share(record.context_lens[seq_id] - start, size)
    prompt = min(filled, _share(trace.meta["prompts"][seq_id] - start, size))
    return look | {"colour": theme.prompt_colour(seq_id), "light": theme.decode_colour(seq_id), "filled": filled,
                   "prompt": prompt}


def _share(tokens: int, size: int) -> float:
    return min(max(tokens, 0), size) / size


def _caption(record: StepRecord, physical: bool) -> str:
    shared = record.blocks.count("s")
    if shared:
        return f"Hatched: {shared} blocks that several sequences share; ×n counts them. Each is stored once."
    if record.block_tables:
        return "Dark is prompt, light is generated, an empty outline is room for tokens to come."
    if record.blocks.count("c"):
        return "Nobody runs. Outlined blocks are free to take, yet keep their contents until someone does."
    return "Nobody runs, and nothing is cached."
