"""A film for BlockTableExplorer of blocks being handed out: growing, sharing, copy-on-write, giving back."""

import random

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.utils.checks import check
from visualizations.explorers.block_table import BlockTableExplorer
from visualizations.explorers.sources import Books


class AllocationFilm:
    """Keeps the books of a few texts by hand, and notes after each event what happened, where, and why.

        film = AllocationFilm(num_blocks=12, block_size=4)
        first = film.arrive("tell me a story about a fox")
        second = film.fork(first)               # two answers to one prompt: every block shared
        film.write(second, "once upon a time")  # into a block that the first reads, too: copied first (copy-on-write)
        film.end(first)
        film.explorer()                         # its play button walks through all of it

    Owns a `BlockManager` without prefix caching, the sequences, and the `Books` of every event. A token is a word; nothing is
    computed, only the tables are kept. Earlier requests have given the blocks back in the order of `seed`.
    """

    def __init__(self, num_blocks: int, block_size: int, seed: int = 0) -> None:
        self.manager = BlockManager(num_blocks, block_size, enable_prefix_caching=False)
        self.sequences: list[Sequence] = []
        self.copied_at: list[int] = []  # events that copied a block
        self._words: list[str] = []
        earlier = [Sequence(-1 - i, [0]) for i in range(num_blocks)]
        for seq in earlier:
            self.manager.append(seq, 1)
        for seq in random.Random(seed).sample(earlier, num_blocks):
            self.manager.free(seq)
        self.books = Books(self.manager, self.sequences, self._words.__getitem__)
        self.books.says[0] = f"{num_blocks} blocks are free, in the order in which earlier requests gave them back."

    def arrive(self, prompt: str) -> Sequence:
        """A request with the words of `prompt`, which get their blocks at once. Raises RuntimeError when too few are free."""
        tokens = self._tokens(prompt)
        seq = Sequence(len(self.sequences), tokens)
        self.manager.append(seq, len(tokens))
        self.sequences.append(seq)
        self._note(seq, f"Sequence {seq.seq_id} arrives with {len(tokens)} tokens and takes {_blocks(seq.block_table)}.")
        return seq

    def write(self, seq: Sequence, text: str) -> None:
        """`seq` generates the words of `text`, one after the other; a block is taken when a token needs one, never before."""
        self._check_running(seq)
        size = self.manager.block_size
        for token in self._tokens(text):
            position, word = len(seq), self._words[token]
            logical, offset = divmod(position, size)
            copied = None
            if logical == len(seq.block_table):
                self.manager.append(seq, position + 1)
                how = f"its {logical} blocks are full, so it takes block {seq.block_table[-1]}"
            elif self.manager.ref_counts[seq.block_table[logical]] > 1:
                copied = self._copy(seq, logical)
                how = (f"block {copied[0]} is read by others, too, so its {offset} tokens are copied to block {copied[1]}, and "
                       "the new one is written there")
            else:
                how = f"slot {offset} of block {seq.block_table[logical]} is free"
            seq.token_ids.append(token)
            self._note(seq, f"Sequence {seq.seq_id} writes “{word}”: {how}.", copied)

    def fork(self, parent: Sequence) -> Sequence:
        """A second answer to the same text: a table of the same blocks, the last and only partly full one included."""
        self._check_running(parent)
        child = Sequence(len(self.sequences), parent.prompt_token_ids)
        child.token_ids = list(parent.token_ids)
        child.block_table = list(parent.block_table)
        for block in child.block_table:
            self.manager.ref_counts[block] += 1
        self.sequences.append(child)
        self._note(child, f"Sequence {parent.seq_id} forks: sequence {child.seq_id} gets a table of the same blocks. Nothing "
                          "is copied, and no block is taken.")
        return child

    def end(self, seq: Sequence) -> None:
        """`seq` lets go of its blocks; those that somebody else reads stay."""
        self._check_running(seq)
        free, shared = ([block for block in seq.block_table if (self.manager.ref_counts[block] > 1) is kept]
                        for kept in (False, True))
        self.manager.free(seq)
        seq.status = SequenceStatus.FINISHED
        parts = [f"{_blocks(free)} can be taken again" if free else "",
                 f"{_blocks(shared)} stay{'s' if len(shared) == 1 else ''}, since others still read there" if shared else ""]
        self._note(None, f"Sequence {seq.seq_id} ends: {'; '.join(filter(None, parts))}.")

    def explorer(self, step: int = 0, label: str = "Blocks being handed out") -> BlockTableExplorer:
        """The film so far; step: the event that it opens at, and that the still picture shows."""
        return BlockTableExplorer(self.books, step=step, label=label)

    def _copy(self, seq: Sequence, logical: int) -> tuple[int, int]:
        """Copy-on-write: a block of its own in place of a shared one, whose others keep it."""
        source = seq.block_table[logical]
        self.manager.append(seq, len(seq.block_table) * self.manager.block_size + 1)
        seq.block_table[logical] = target = seq.block_table.pop()
        self.manager.ref_counts[source] -= 1
        self.copied_at.append(len(self.books.says))
        return source, target

    def _note(self, seq: Sequence | None, says: str, copied: tuple[int, int] | None = None) -> None:
        self.books.look(says, None if seq is None else (seq.seq_id, len(seq) - 1), copied)

    def _tokens(self, text: str) -> list[int]:
        words = text.split()
        check(bool(words), "text", text, "one word or more", "a token is a word here")
        self._words += words
        return list(range(len(self._words) - len(words), len(self._words)))

    def _check_running(self, seq: Sequence) -> None:
        running = [one.seq_id for one in self.sequences if not one.is_finished]
        check(any(seq is one for one in self.sequences) and not seq.is_finished, "seq", seq, f"a running one of {running}",
              "let it arrive first")


def _blocks(blocks: list[int]) -> str:
    *others, last = map(str, blocks)
    return f"blocks {', '.join(others)} and {last}" if others else f"block {last}"
