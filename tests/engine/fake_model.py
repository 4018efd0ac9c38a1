"""A model without tensors: the next token depends on every token before it, so a wrong prefix shows."""

from hashlib import blake2b

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler


def next_token(tokens: list[int], vocab: int = 50) -> int:
    return int.from_bytes(blake2b(repr(tokens).encode(), digest_size=4).digest(), "big") % vocab


class FakeRunner:
    """Computes like a model with a paged cache: it may only use what it can read back through block tables."""

    def __init__(self, num_blocks: int, block_size: int):
        self.block_size = block_size
        self.slots: dict[int, int] = {}  # slot -> the token whose keys and values it holds

    def run(self, batch):
        written = []
        for item in batch.items:
            seq = item.seq
            for position in range(item.start, item.start + item.num_tokens):
                if position >= seq.num_cached_tokens:
                    slot = self._slot(seq, position)
                    written.append(slot)
                    self.slots[slot] = seq.token_ids[position]
        if len(written) != len(set(written)):
            raise RuntimeError("two tokens were written to one slot in one step")
        tokens = []
        for item in batch.items:
            if item.samples:
                seen = [self.slots.get(self._slot(item.seq, p)) for p in range(item.start + item.num_tokens)]
                if seen != item.seq.token_ids:
                    raise RuntimeError(f"{item.seq!r} reads {seen} through its block table, not {item.seq.token_ids}")
                tokens.append(next_token(seen))
        return tokens

    def _slot(self, seq, position):
        return seq.block_table[position // self.block_size] * self.block_size + position % self.block_size


def make(num_blocks=64, block_size=4, caching=True, **limits):
    scheduler = Scheduler(BlockManager(num_blocks, block_size, caching), **limits)
    return scheduler, FakeRunner(num_blocks, block_size)


def step(scheduler, runner):
    """One step, checked; returns (batch, finished)."""
    batch = scheduler.schedule()
    finished = scheduler.update(batch, runner.run(batch))
    scheduler.check_integrity()
    return batch, finished
