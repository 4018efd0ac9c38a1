"""A model without tensors: the next token depends on every token before it, so a wrong prefix shows."""

from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from random import Random
from types import SimpleNamespace

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.drafts import Drafter, num_accepted
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


class DraftingRunner(FakeRunner):
    """A fake runner whose device drafts: where a sequence stands is known to its rows, and to the host a step later.

    It plays `draft_graphs.DraftGraphs`, too. chance: that a draft is right.
    """

    max_rows, lengths = 6, [1, 3]

    def __init__(self, num_blocks, block_size, chance):
        super().__init__(num_blocks, block_size)
        self.chance, self.random, self.draft_graphs = chance, Random(0), self
        self.num_drafted = self.num_behind_drafts = 0

    def reset(self):
        super().reset()
        self.rows, self.last = {}, {}  # by seq_id: the tokens that its row stands behind, the item that ran there last

    def knows(self, seq):
        last = self.last.get(seq.seq_id)
        return last is not None and (
            seq.num_pending_tokens > 0 or last.start + 1 + (last.num_accepted or 0) == seq.num_computed_tokens)

    def launch(self, batch):
        if not all(item.seq.drafts_on_device for item in batch.items):
            self.rows, self.last = {}, {}
            return batch, self.run(batch), None
        rows, drawn, outcomes = {}, {}, []
        for item in batch.items:
            seq, seq_id = item.seq, item.seq.seq_id
            tokens = self.rows[seq_id] if self.knows(seq) else (
                seq.token_ids + self.drawn.get(seq_id, [])[:seq.num_pending_tokens])
            cached, drafts = len(tokens) - 1, []
            for _ in range(item.num_reserved if self.random.random() < 0.8 else self.random.randint(0, item.num_reserved)):
                right = self.random.random() < self.chance
                drafts.append(next_token(tokens + drafts) if right else self.random.randrange(50))
            prints = fingerprints(tokens + drafts)
            for position in range(cached, len(prints)):
                if position >= seq.num_cached_tokens:
                    self.slots[self._slot(seq, position)] = prints[position]
            if [self.slots.get(self._slot(seq, position)) for position in range(len(prints))] != prints:
                raise RuntimeError(f"{seq!r} reads something else than its own prefix")
            new = [next_token((tokens + drafts)[:position + 1]) for position in range(cached, len(prints))]
            right = num_accepted(drafts, new)
            rows[seq_id], drawn[seq_id] = tokens + new[:right + 1], [new[right]]
            outcomes.append((drafts, new))
            self.num_drafted += len(drafts)
            self.num_behind_drafts += seq.num_pending_drafts > 0
        self.rows, self.last, self.drawn = rows, {item.seq.seq_id: item for item in batch.items}, drawn
        return batch, [token for _, new in outcomes for token in new], [drafts for drafts, _ in outcomes]

    def collect(self, launched):
        batch, tokens, drafts = launched
        for item, found in zip(batch.items, drafts or []):
            item.draft_token_ids, item.num_tokens = found, 1 + len(found)
        return tokens


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

    def catch_up(self, sequences):
        self.known.update(seq.seq_id for seq in sequences)

    def likely(self, seq):  # who is asked may keep notes
        self.known.add(seq.seq_id)
        return super().likely(seq)

    def forget(self, seq_id):
        self.known.remove(seq_id)


def make_engine(num_blocks=64, block_size=4, caching=True, looks_ahead=True, eos_token_ids=(),
                scheduler_cls=Scheduler, drafter=None, speculative_config=None, ahead=None, **limits):  # fmt: skip
    """The engine itself, on a model without tensors. ahead: the device drafts, right with such a chance."""
    limits = dict(max_num_seqs=512, max_num_batched_tokens=16384, max_model_len=4096) | limits
    config = SimpleNamespace(kvcache_block_size=block_size, enable_prefix_caching=caching, eos_token_ids=eos_token_ids,
                             async_scheduling=looks_ahead,
                             device=SimpleNamespace(type="cpu"), tensor_parallel_size=1, seed=0, model=Path("fake"),
                             hf_config=SimpleNamespace(vocab_size=1000), speculative_config=speculative_config,
                             attention_backend="torch", **limits)
    runner = FakeRunner(num_blocks, block_size) if ahead is None else DraftingRunner(num_blocks, block_size, ahead)
    return LLMEngine(config, runner, scheduler_cls, drafter=drafter)


def step(scheduler, runner):
    """One step, checked; returns (batch, finished)."""
    batch = scheduler.schedule()
    finished = scheduler.update(batch, runner.run(batch))
    scheduler.check_integrity()
    return batch, finished
