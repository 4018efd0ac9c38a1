"""The prefix tree: which beginnings the cache holds, and where prompts part."""

from collections.abc import Callable, Iterable
from itertools import takewhile

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence
from visualizations import theme

COLUMN = 2.3  # widths of a block from one to the next
ROW = 1.35
SCALE = 0.62  # inches for a block's width
LONGEST = 17  # letters of a block's text


class _Node:
    def __init__(self, block: int, tokens: list[int], depth: int):
        self.block, self.tokens, self.depth = block, tokens, depth
        self.seq_ids: list[int] = []
        self.children: dict[int, _Node] = {}
        self.siblings: list[list[int]] = []  # tokens of the blocks that stand at the same fork, its own included
        self.row = 0.0


@theme.in_both_modes
def plot_prefix_tree(block_manager: BlockManager, sequences: Iterable[Sequence], *,
                     decode: Callable[[list[int]], str] | None = None, ax: Axes | None = None) -> Figure:
    """The cached blocks that `sequences` would find, as a tree: one column a logical block, a branch where prompts differ.

    sequences: running, waiting or finished ones; the tree holds what `find_cached_prefix` finds for each of them.
    decode: token ids -> text, written under each block. Shared blocks are hatched and counted by their references.
    """
    root = _Node(-1, [], -1)
    size = block_manager.block_size
    for seq in sequences:
        node = root
        for i, block in enumerate(block_manager.find_cached_prefix(seq)):
            node = node.children.setdefault(block, _Node(block, seq.token_ids[i * size:(i + 1) * size], i))
            node.seq_ids.append(seq.seq_id)
    nodes: list[_Node] = []
    num_rows = _assign_rows(root, 0, nodes)
    depth = max((node.depth for node in nodes), default=0)
    fig, ax = theme.canvas(ax, max(6.5, min(12.4, SCALE * (depth * COLUMN + 2.1))), SCALE * 1.35 * max(num_rows, 1) + 0.75,
                           widest=12.4)
    for node in nodes:
        _draw(ax, block_manager, node, decode)
    theme.no_axes(ax)
    ax.set(xlim=(-0.15, depth * COLUMN + 1.9), ylim=(-num_rows * ROW + 0.75, 1.0), aspect="equal", anchor="NW")
    stored, asked = len(nodes), sum(len(node.seq_ids) for node in nodes)
    theme.title(ax, f"The prefix tree (1 block = {size} tokens)",
                f"{asked} blocks of prompts are {stored} blocks of memory: every block before a fork is stored once."
                if stored else "Nothing is cached yet: a block enters the tree when it is full.")
    return fig


def _assign_rows(node: _Node, row: int, nodes: list[_Node]) -> int:
    """Give every node its row, leaves one after the other; returns the next free one."""
    if not node.children:
        node.row = row
        return row + 1 if node.depth >= 0 else row
    for child in node.children.values():
        child.siblings = [other.tokens for other in node.children.values()]
        nodes.append(child)
        row = _assign_rows(child, row, nodes)
    node.row = next(iter(node.children.values())).row  # straight on with the first, so that forks go down
    return row


def _draw(ax: Axes, block_manager: BlockManager, node: _Node,
          decode: Callable[[list[int]], str] | None) -> None:
    m = theme.mode()
    x, y = node.depth * COLUMN, -node.row * ROW
    owner = node.seq_ids[0]
    for child in node.children.values():
        middle, bottom, end = y + 0.43, -child.row * ROW + 0.43, child.depth * COLUMN
        bend = x + 0.86 + 0.8 * (COLUMN - 0.86)  # beyond the end of its text
        ax.plot([x + 0.86, bend, bend, end], [middle, middle, bottom, bottom], color=m.muted, linewidth=1.2, zorder=0,
                gid=f"edge-{node.block}-{child.block}", solid_joinstyle="round")
    theme.draw_block(ax, x, y, node.block, state=block_manager.block_state(node.block), colour=theme.prompt_colour(owner),
                     references=max(1, block_manager.ref_counts[node.block]))
    if decode:
        texts = [" ".join(decode(tokens).split()) for tokens in node.siblings]
        # At a fork, what differs is to be read: the words that all begin with are left out.
        words = list(takewhile(lambda column: len(set(column)) == 1, zip(*(text.split() for text in texts))))
        alike = sum(len(column[0]) + 1 for column in words) if len(texts) > 1 else 0
        text = ("…" if alike else "") + " ".join(decode(node.tokens).split())[alike:]
        text = text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"
        ax.text(x, y - 0.1, text, fontsize=7.5, va="top", ha="left", color=m.muted, gid="text", parse_math=False)
    if not node.children:
        who = ", ".join(str(i) for i in dict.fromkeys(node.seq_ids))
        ax.text(x + 1.0, y + 0.43, f"← {who}", fontsize=9, va="center", ha="left", color=m.ink, gid="leaf")
