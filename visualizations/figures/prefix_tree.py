"""The prefix tree: which beginnings the cache holds, and where prompts part."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence
from visualizations import theme

COLUMN, NARROWEST = 2.3, 1.45  # widths of a block from one to the next: where there is room, and at least
LEAF = 2.1  # widths that the last block takes, with who ends there
ROW = 1.15  # widths of a block from one row to the next, without the text under it
LINE = 0.21  # widths of a block that a line of its text is high
SCALE = 0.62  # inches for a block's width
LONGEST = 21  # letters of a line of a block's text at the full distance
MOST_LINES = 4


class _Node:
    def __init__(self, block: int, tokens: list[int], depth: int):
        self.block, self.tokens, self.depth = block, tokens, depth
        self.seq_ids: list[int] = []
        self.children: dict[int, _Node] = {}
        self.siblings: list[list[int]] = []  # tokens of the blocks that stand at the same fork, its own included
        self.row = self.x = self.y = 0.0
        self.text: list[str] = []  # under it, in lines
        self.left_out = 0  # blocks between this one and its child that are not drawn


@theme.in_both_modes
def plot_prefix_tree(block_manager: BlockManager, sequences: Iterable[Sequence], *,
                     decode: Callable[[list[int]], str] | None = None, ax: Axes | None = None) -> Figure:
    """The cached blocks that `sequences` would find, as a tree: a column per logical block, a branch where prompts differ.

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
    _assign_rows(root, 0, nodes)
    stored, asked = len(nodes), sum(len(node.seq_ids) for node in nodes)
    columns, distance = _columns(nodes)
    last = max(columns.values(), default=0)
    for node in nodes:
        node.x = columns[node.depth] * distance
        if decode:
            node.text = _text(node, decode, int(LONGEST * distance / COLUMN))
    alone = Counter(node.x for node in nodes)  # a text with no block below may have more lines than a row has room for
    row = ROW + LINE * max((len(node.text) for node in nodes if alone[node.x] > 1), default=0)
    for node in nodes:
        node.y = -node.row * row
    low = min((node.y - 0.2 - LINE * len(node.text) for node in nodes), default=0.0)
    fig, ax = theme.canvas(ax, max(6.5, SCALE * (last * distance + LEAF)), SCALE * (1.0 - low) + 0.75)
    for node in nodes:
        _draw(ax, block_manager, node)
    theme.no_axes(ax)
    ax.set(xlim=(-0.15, last * distance + LEAF - 0.2), ylim=(low, 1.0), aspect="equal", anchor="NW")
    theme.title(ax, f"The prefix tree (1 block = {size} tokens)",
                f"{asked} blocks of prompts are {stored} blocks of memory: every block before a fork is stored once."
                if stored else "Nothing is cached yet: a block enters the tree when it is full.")
    return fig


def _columns(nodes: list[_Node]) -> tuple[dict[int, int], float]:
    """({depth: its column}, widths of a block between two columns), so that the tree fits a page.

    A deep tree is drawn closer. Where that is not enough, the inside of stretches without a fork or an end is left out of
    `nodes`, and the block before it counts what is missing.
    """
    room = theme.WIDEST / SCALE - LEAF
    depths = sorted({node.depth for node in nodes})
    if len(depths) > 1 + room / NARROWEST:
        parents = {id(child): node for node in nodes for child in node.children.values()}
        plain = [len(node.children) == 1 and id(node) in parents and len(parents[id(node)].children) == 1 for node in nodes]
        dull = {depth for depth in depths if all(plain[i] for i, node in enumerate(nodes) if node.depth == depth)}
        dull -= {depth for depth in dull if {depth - 1, depth + 1}.isdisjoint(dull)}  # one block is no longer than its absence
        for node in [node for node in nodes if node.depth in dull]:
            parent, (child,) = parents[id(node)], node.children.values()
            del parent.children[node.block]
            parent.children[child.block] = child
            parents[id(child)] = parent
            parent.left_out += 1 + node.left_out
            nodes.remove(node)
        depths = [depth for depth in depths if depth not in dull]
    steps = max(1, len(depths) - 1)
    return {depth: column for column, depth in enumerate(depths)}, max(NARROWEST, min(COLUMN, room / steps))


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


def _text(node: _Node, decode: Callable[[list[int]], str], letters: int) -> list[str]:
    """What a block says, in lines. At a fork, what differs is to be read: the words that all begin with are left out."""
    texts = [" ".join(decode(tokens).split()) for tokens in node.siblings]
    words = list(takewhile(lambda column: len(set(column)) == 1, zip(*(text.split() for text in texts))))
    alike = sum(len(column[0]) + 1 for column in words) if len(texts) > 1 else 0
    text = ("…" if alike else "") + " ".join(decode(node.tokens).split())[alike:]
    return wrap(text, letters, max_lines=MOST_LINES, placeholder=" …")


def _draw(ax: Axes, block_manager: BlockManager, node: _Node) -> None:
    m = theme.mode()
    x, y = node.x, node.y
    owner = node.seq_ids[0]
    for child in node.children.values():
        middle, bottom, end = y + 0.43, child.y + 0.43, child.x
        bend = x + 0.86 + 0.8 * (end - x - 0.86)  # beyond the end of its text
        ax.plot([x + 0.86, bend, bend, end], [middle, middle, bottom, bottom], color=m.muted, linewidth=1.2, zorder=0,
                gid=f"edge-{node.block}-{child.block}", solid_joinstyle="round")
        if node.left_out:
            ax.text((x + 0.86 + end) / 2, middle, f"{node.left_out} more", fontsize=7.5, va="center", ha="center",
                    color=m.muted, gid="left-out", bbox=dict(facecolor=m.paper, edgecolor="none", pad=0.6))
    theme.draw_block(ax, x, y, node.block, state=block_manager.block_state(node.block), colour=theme.prompt_colour(owner),
                     references=max(1, block_manager.ref_counts[node.block]))
    if node.text:
        ax.text(x, y - 0.1, "\n".join(node.text), fontsize=7.5, va="top", ha="left", color=m.muted, gid="text",
                parse_math=False, linespacing=1.15)
    if not node.children:
        who = ", ".join(str(i) for i in dict.fromkeys(node.seq_ids))
        ax.text(x + 1.0, y + 0.43, f"← {who}", fontsize=9, va="center", ha="left", color=m.ink, gid="leaf")
