"""A model without tensors: the next token depends on every token before it, so a wrong prefix shows."""

from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from random import Random
from types import SimpleNamespace

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.scheduler import Scheduler


def next_token(tokens: list[int], vocab: int = 50) -> int:
    return int.from_bytes(blake2b(repr(tokens).encode(), digest_size=4).digest(), "big") % vocab


def fingerprints(tokens: list[int]) -> list[int]:
    """What stands for each token's keys and values: like those, it depends on the token and on all before it."""
    return list(accumulate(tokens, lambda before, token: hash((before, token)), initial=0))[1:]


class FakeRunner:
    """Computes like a model with a paged cache: it may only use what it can read back through block tables."""

    def __init__(self, num_blocks: int, block_size: int):
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.failure = None
        self.slots: dict[int, int] = {}  # slot -> the fingerprint that lies there
        self.reset()

    def run(self, batch):
        """Like a device, it knows the tokens that it drew in the step before and the host has not seen yet."""
        written, drawn = [], {}
        token_ids = {item.seq.seq_id: item.seq.token_ids + self.drawn.get(item.seq.seq_id, [])[:item.seq.num_pending_tokens]
                     for item in batch.items}
        for item in batch.items:
            token_ids[item.seq.seq_id] = token_ids[item.seq.seq_id] + item.draft_token_ids
        prints = {seq_id: fingerprints(tokens) for seq_id, tokens in token_ids.items()}
        if not all(item.num_tokens > 0 for item in batch.items):
            raise RuntimeError(f"a sequence is scheduled with nothing to compute: {batch.items}")
        for item in batch.items:
            seq = item.seq
            for position in range(item.start, item.start + item.num_tokens):
                if position >= seq.num_cached_tokens:
                    slot = self._slot(seq, position)
                    written.append(slot)
                    self.slots[slot] = prints[seq.seq_id][position]
        if len(written) != len(set(written)):
            raise RuntimeError("two tokens were written to one slot in one step")
        for item in batch.items:
            if item.samples:
                seen = [self.slots.get(self._slot(item.seq, p)) for p in range(item.start + item.num_tokens)]
                if seen != prints[item.seq.seq_id]:
                    wrong = next(p for p, (a, b) in enumerate(zip(seen, prints[item.seq.seq_id])) if a != b)
                    raise RuntimeError(f"{item.seq!r} reads something else than its own prefix at position {wrong}")
                drawn[item.seq.seq_id] = [next_token(token_ids[item.seq.seq_id][:p]) for p in item.drawn_positions]
        self.drawn = drawn
        return [token for tokens in drawn.values() for token in tokens]

    def launch(self, batch):
        return self.run(batch)

    def draw(self, token_ids):
        pass

    def collect(self, token_ids):
        return token_ids

    def reset(self):
        self.drawn = {}

    def _slot(self, seq, position):
        return seq.block_table[position // self.block_size] * self.block_size + position % self.block_size


def make(num_blocks=64, block_size=4, caching=True, **limits):
    scheduler = Scheduler(BlockManager(num_blocks, block_size, caching), **limits)
    return scheduler, FakeRunner(num_blocks, block_size)


class FakeDrafter(Drafter):
    """Guesses right with a given chance, and otherwise anything, fewer than it may, or nothing."""

    def __init__(self, chance, seed=0):
        self.chance, self.random, self.known = chance, Random(seed), set()

    def propose(self, sequences, limits):
        proposals = []
        for seq, limit in zip(sequences, limits):
            self.known.add(seq.seq_id)
            tokens = list(seq.token_ids)
            for _ in range(limit if self.random.random() < 0.8 else self.random.randint(0, limit)):
                tokens.append(next_token(tokens) if self.random.random() < self.chance else self.random.randrange(50))
            proposals.append(tokens[len(seq):])
        return proposals

    def forget(self, seq_id):
        self.known.remove(seq_id)


def make_engine(num_blocks=64, block_size=4, caching=True, looks_ahead=True, eos_token_ids=(),
                scheduler_cls=Scheduler, drafter=None, speculative_config=None, **limits):  # fmt: skip
    """The engine itself, on a model without tensors."""
    limits = dict(max_num_seqs=512, max_num_batched_tokens=16384, max_model_len=4096) | limits
    config = SimpleNamespace(kvcache_block_size=block_size, enable_prefix_caching=caching, eos_token_ids=eos_token_ids,
                             async_scheduling=looks_ahead,
                             device=SimpleNamespace(type="cpu"), tensor_parallel_size=1, seed=0, model=Path("fake"),
                             hf_config=SimpleNamespace(vocab_size=1000), speculative_config=speculative_config, **limits)
    return LLMEngine(config, FakeRunner(num_blocks, block_size), scheduler_cls, drafter=drafter)


def step(scheduler, runner):
    """One step, checked; returns (batch, finished)."""
    batch = scheduler.schedule()
    finished = scheduler.update(batch, runner.run(batch))
    scheduler.check_integrity()
    return batch, finished
