"""The KV cache's bookkeeping: which sequences hold a physical block, and which free blocks still hold a cached prefix."""

from collections import Counter, OrderedDict
from collections.abc import Iterable

from nanovllm.engine.sequence import Sequence
from nanovllm.utils.checks import check


class BlockManager:
    """Hands out physical block ids, as an operating system hands out pages (PagedAttention, Kwon et al. 2023).

    Owns the ids 0..num_blocks-1: their reference counts, the hash of what each full block holds, and the queue of
    unreferenced ones. It never touches the memory behind an id and never decides which sequences run.

    A block is free (unreferenced, empty), cached (unreferenced, content kept until the block is reused, least recently
    used first), in use (one owner) or shared (several sequences whose prefixes are equal). Every operation costs
    O(blocks touched), whatever the size of the cache.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True):
        check(num_blocks >= 1, "num_blocks", num_blocks, "1 or more", "give the cache at least one block")
        check(block_size >= 1, "block_size", block_size, "1 or more", "a block holds at least one token")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.ref_counts = [0] * num_blocks
        self.hashes: list[bytes | None] = [None] * num_blocks  # of blocks whose content can be found again
        self._cached: dict[bytes, int] = {}                    # the inverse: hash -> block
        self._unreferenced = OrderedDict.fromkeys(range(num_blocks))  # next to be reused first
        self.num_evictions = 0

    def __repr__(self) -> str:
        count = Counter(self.block_state(b) for b in range(self.num_blocks))
        return (f"BlockManager({self.num_blocks} blocks x {self.block_size} tokens: {count['u']} in use, "
                f"{count['s']} shared, {count['c']} cached, {count['f']} free)")

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out now: the empty ones and the cached ones without a reference."""
        return len(self._unreferenced)

    def block_state(self, block: int) -> str:
        """One letter for pictures and traces: f(ree), c(ached), u(sed), s(hared)."""
        if self.ref_counts[block]:
            return "s" if self.ref_counts[block] > 1 else "u"
        return "f" if self.hashes[block] is None else "c"

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_cached_prefix(self, seq: Sequence) -> list[int]:
        """Blocks holding the longest cached prefix of `seq`, in order. Takes no reference: see `allocate`."""
        blocks = []
        if self.enable_prefix_caching:
            for block_hash in seq.block_hashes(self.block_size):
                block = self._cached.get(block_hash)
                if block is None:
                    break
                blocks.append(block)
        return blocks

    def num_new_blocks(self, seq: Sequence, num_tokens: int, prefix: Iterable[int] = ()) -> int:
        """How many free blocks `seq` would take to hold `num_tokens` tokens.

        prefix: cached blocks that it would start with. Those that another sequence holds already take no free block.
        """
        prefix = list(prefix)
        unreferenced = sum(self.ref_counts[b] == 0 for b in prefix)
        return max(0, self.num_blocks_for(num_tokens) - len(seq.block_table) - len(prefix)) + unreferenced

    def allocate(self, seq: Sequence, prefix: list[int]) -> None:
        """Start the block table of a sequence that holds none with the cached blocks that `find_cached_prefix` returned."""
        if seq.block_table:
            raise RuntimeError(f"{seq!r} already holds blocks; free it before allocating again.")
        for block in prefix:
            if self.ref_counts[block] == 0:
                del self._unreferenced[block]
            self.ref_counts[block] += 1
        seq.block_table = list(prefix)
        seq.num_cached_tokens = len(prefix) * self.block_size
        # Logits come only from a token that is computed, so even a fully cached prompt leaves its last one to do.
        seq.num_computed_tokens = min(seq.num_cached_tokens, len(seq) - 1)

    def append(self, seq: Sequence, num_tokens: int) -> None:
        """Grow the block table until it holds `num_tokens` tokens.

        Raises RuntimeError, and changes nothing, when the blocks do not suffice: callers ask `num_new_blocks` first.
        """
        missing = self.num_new_blocks(seq, num_tokens)
        if missing > self.num_free_blocks:
            raise RuntimeError(f"sequence {seq.seq_id} needs {missing} more blocks and {self.num_free_blocks} are free; "
                               "preempt or free a sequence first.")
        for _ in range(missing):
            block, _ = self._unreferenced.popitem(last=False)
            if self.hashes[block] is not None:
                self._forget(block)
                self.num_evictions += 1
            self.ref_counts[block] = 1
            seq.block_table.append(block)

    def trim(self, seq: Sequence, num_tokens: int) -> None:
        """Give back the blocks at the end of the table that `num_tokens` tokens do not need."""
        while len(seq.block_table) > self.num_blocks_for(num_tokens):
            self._release(seq.block_table.pop())

    def commit(self, seq: Sequence, start: int) -> None:
        """Make findable the blocks of `seq` that were filled since it had `start` computed tokens."""
        if not self.enable_prefix_caching:
            return
        hashes = seq.block_hashes(self.block_size)
        for i in range(start // self.block_size, seq.num_computed_tokens // self.block_size):
            block = seq.block_table[i]
            if self.hashes[block] is None and hashes[i] not in self._cached:
                self.hashes[block] = hashes[i]
                self._cached[hashes[i]] = block

    def free(self, seq: Sequence) -> None:
        """Drop the references of `seq`. Contents stay findable until their block is reused."""
        # Last block first: a prefix is worth more than its tail, so it should be the last to go.
        for block in reversed(seq.block_table):
            self._release(block)
        seq.block_table = []
        seq.num_computed_tokens = 0

    def forget(self, seq: Sequence) -> None:
        """Make the blocks that `seq` holds unfindable: their content is not to be trusted."""
        for block in seq.block_table:
            if self.hashes[block] is not None:
                self._forget(block)

    def reset_prefix_cache(self) -> int:
        """Forget the content of every cached block; returns how many blocks that emptied."""
        cached = [b for b in self._unreferenced if self.hashes[b] is not None]
        for block in cached:
            self._forget(block)
        return len(cached)

    def eviction_order(self) -> list[int]:
        """Unreferenced blocks in the order they will be reused."""
        return list(self._unreferenced)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raise RuntimeError unless reference counts, queue and hashes agree with the sequences that hold blocks.

        O(blocks in use or findable), and two counts over the cache: cheap enough to be called after every step of a test.
        """
        sequences = list(sequences)
        owners = Counter(block for seq in sequences for block in seq.block_table)
        for block, count in owners.items():
            if self.ref_counts[block] != count:
                raise RuntimeError(f"block {block}: reference count {self.ref_counts[block]}, owners {count}")
            if block in self._unreferenced:
                raise RuntimeError(f"block {block}: {count} owners, yet in the free queue")
        free = self.num_blocks - len(owners)
        if self.ref_counts.count(0) != free:
            raise RuntimeError(f"{free} blocks have no owners, {self.ref_counts.count(0)} no references")
        if len(self._unreferenced) != free:
            raise RuntimeError(f"{free} blocks have no owners, {len(self._unreferenced)} stand in the free queue")
        findable = self.num_blocks - self.hashes.count(None)
        if findable != len(self._cached) or any(self.hashes[block] != known for known, block in self._cached.items()):
            raise RuntimeError("the hash index and the blocks' own hashes disagree")
        writers = Counter(block for seq in sequences for block in seq.block_table[
            max(seq.num_computed_tokens, seq.num_cached_tokens) // self.block_size:])
        for block, count in writers.most_common(1):
            if count > 1:
                raise RuntimeError(f"block {block}: {count} sequences are to write it")

    def _release(self, block: int) -> None:
        self.ref_counts[block] -= 1
        if self.ref_counts[block] == 0:
            self._unreferenced[block] = None
            if self.hashes[block] is None:  # nothing to keep: reuse it before anything cached
                self._unreferenced.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        block_hash, self.hashes[block] = self.hashes[block], None
        if block_hash is not None:
            del self._cached[block_hash]
