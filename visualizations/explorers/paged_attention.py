"""PagedAttentionExplorer: one query walks its block table, and the softmax takes in one block of keys after the other."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted
from visualizations.explorers.base import Explorer
from visualizations.figures.online_softmax import plot_online_softmax


class PagedAttentionExplorer(Explorer):
    """What a decode's attention does for one query head: which physical block it reads now, and how its numbers change.

        PagedAttentionExplorer(q, k_cache, v_cache, block_table=[11, 3, 5], length=21, scale=0.125)

    q: [head_dim], the query. k_cache, v_cache: [num_blocks, block_size, head_dim], the cache of the head that it reads.
    All three on the CPU, as tensors, arrays or lists. block_table: the sequence's blocks in the order of its text; entries
    behind the last token are not looked at. length: the keys that the query sees. scale: of the scores. seq_id: whose
    colour the blocks have. num_prompt: how many of its tokens are prompt (dark in a block; all, when left out). owners:
    {block: seq_id} of the blocks that others hold. words: the text of each of the `length` tokens.

    The browser computes every step itself (Milakov and Gimelshein, 2018), so it needs no kernel. Raises ValueError for
    tensors that do not fit together, for a length outside of the table, and for a key that was never written (not finite).
    """

    module = "paged_attention.js"

    def __init__(self, q: ArrayLike, k_cache: ArrayLike, v_cache: ArrayLike, *, block_table: Sequence[int], length: int,
                 scale: float, seq_id: int = 0, num_prompt: int | None = None, owners: Mapping[int, int] | None = None,
                 words: Sequence[str] | None = None, step: int = 0, label: str = "One query walks its block table") -> None:
        query, keys, values = (np.asarray(given, dtype=np.float64) for given in (q, k_cache, v_cache))
        check(query.ndim == 1 and keys.ndim == 3 and keys.shape == values.shape and keys.shape[2:] == query.shape,
              "shapes of q, k_cache and v_cache", (query.shape, keys.shape, values.shape),
              "[head_dim] and twice [num_blocks, block_size, head_dim]", "pass one query head and the cache of its key head")
        num_blocks, block_size = keys.shape[:2]
        self.table = [int(block) for block in block_table][:-(-length // block_size)]
        check(1 <= length <= len(self.table) * block_size, "length", length,
              f"1 to {len(self.table) * block_size}, the slots of the block table's {len(self.table)} blocks",
              "pass the sequence's context length and its whole table")
        check(all(0 <= block < num_blocks for block in self.table), "block_table", self.table, f"blocks 0 to {num_blocks - 1}",
              "pass the table that belongs to this cache")
        check(words is None or len(words) == length, "len(words)", words and len(words), f"{length}, one per key",
              "pass the text of every token that the query sees")
        mine = keys[self.table].reshape(-1, len(query))[:length]
        self.scores: list[float] = (mine @ query * scale).tolist()
        given = values[self.table].reshape(-1, len(query))[:length]
        check(bool(np.isfinite(self.scores).all() and np.isfinite(given).all()), "keys and values of the block table",
              "not finite", "numbers", "look at the cache after the step that stores them")
        self.block_size, self.seq_id, self.words = block_size, seq_id, words
        super().__init__(
            {"scores": [round(score, 4) for score in self.scores], "values": given.round(4).tolist(), "block_table": self.table,
             "block_size": block_size, "num_blocks": num_blocks, "seq_id": seq_id,
             "num_prompt": length if num_prompt is None else num_prompt, "words": None if words is None else list(words),
             "owners": {block: owner for block, owner in (owners or {}).items() if block not in self.table}},
            label=label, step=step)

    def summary(self) -> str:
        blocks = f"{'block' if len(self.table) == 1 else 'blocks'} {', '.join(map(str, self.table))}"
        return (f"{self.label}: {counted(len(self.scores), 'key')} in {blocks}. Run this cell in "
                "JupyterLab to step through the blocks.")

    def figure(self) -> Figure:
        return plot_online_softmax(self.scores, self.block_size, seq_id=self.seq_id, title=self.label,
                                   names=[f"block {block}" for block in self.table], words=self.words)
