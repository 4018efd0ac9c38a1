"""Random arrivals, steps and aborts against every promise of the scheduler, checked by books of the test's own."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from nanovllm.engine.drafts_control import Speculation
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams
from nanovllm.speculative_config import SpeculativeConfig

from .fake_model import FakeDrafter, fingerprints, make, next_token

seen = Counter()


class Serving(RuleBasedStateMachine):
    @initialize(block_size=st.sampled_from([1, 2, 3, 4, 16]), blocks=st.integers(1, 30), budget=st.integers(1, 40),
                cap=st.integers(1, 8), caching=st.booleans(), chance=st.sampled_from([None, 0.3, 0.9]))
    def start(self, block_size, blocks, budget, cap, caching, chance):
        """From a single block, which the smallest request fills, to room for many."""
        self.scheduler, self.runner = make(blocks, block_size, caching, max_num_seqs=cap, max_num_batched_tokens=budget)
        self.speculation = chance and Speculation(FakeDrafter(chance), self.scheduler, SpeculativeConfig(), 50)
        self.cap, self.budget, self.capacity, self.block_size = cap, budget, blocks * block_size, block_size
        self.sequences, self.contents = {}, {}

    @rule(head=st.integers(0, 2), shared=st.integers(0, 10), tail=st.lists(st.integers(0, 2), max_size=6),
          max_tokens=st.integers(1, 12), priority=st.integers(-1, 1), more=st.integers(1, 3))
    def add(self, head, shared, tail, max_tokens, priority, more):
        """A few at once, so that equal prompts meet in one step. Equal blocks come behind equal and different heads."""
        beginning = [40 + head] * (head and self.block_size) + list(range(shared))
        for i in range(more):
            prompt = (beginning + tail[:len(tail) - i] or [0])[:self.capacity]
            seq = Sequence(len(self.sequences), prompt,
                           SamplingParams(max_tokens=max(1, min(max_tokens, self.capacity + 1 - len(prompt)))), priority)
            self.sequences[seq.seq_id] = seq
            self.scheduler.add(seq)

    @rule(steps=st.integers(1, 6))
    def run(self, steps):
        for _ in range(steps):
            self._step()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def abort(self, data):
        seq = self.sequences[data.draw(st.sampled_from(sorted(self.sequences)))]
        was_there = not seq.is_finished
        if self.speculation:
            self.speculation.forget(seq.seq_id)
        assert (self.scheduler.abort(seq.seq_id) is seq) == was_there
        seen["aborts"] += was_there

    @invariant()
    def promises_hold(self):
        if not hasattr(self, "scheduler"):
            return
        scheduler, manager, size = self.scheduler, self.scheduler.block_manager, self.scheduler.block_manager.block_size
        scheduler.check_integrity()
        assert len(scheduler.running) <= self.cap
        owners = Counter(block for seq in self.sequences.values() for block in seq.block_table)
        assert manager.ref_counts == [owners[block] for block in range(manager.num_blocks)]
        assert set(manager.eviction_order()) == set(range(manager.num_blocks)) - set(owners), "both free and owned"
        for seq in self.sequences.values():
            assert not (seq.block_table and seq not in scheduler.running)
            # What the cache holds of it, whoever wrote it, is what computing it now would give.
            computed = seq.num_computed_tokens
            held = [self.runner.slots.get(seq.block_table[p // size] * size + p % size) for p in range(computed)]
            assert held == fingerprints(seq.token_ids[:computed]), "cached content differs from recomputed content"
        for block_hash, block in manager._cached.items():  # also of blocks that nobody owns
            held = [self.runner.slots[block * size + i] for i in range(size)]
            assert self.contents.setdefault(block_hash, held) == held, "a block that can be found holds something else"

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        longest = 40 * sum(len(seq) + seq.sampling_params.max_tokens for seq in self.sequences.values()) + 1
        for _ in range(longest):
            if not self.scheduler.has_unfinished:
                break
            self._step()
        assert not self.scheduler.has_unfinished, "an admitted request never ended"
        self.promises_hold()
        manager = self.scheduler.block_manager
        assert manager.num_free_blocks == manager.num_blocks
        for seq in self.sequences.values():
            tokens = list(seq.prompt_token_ids)
            while len(tokens) < len(seq):
                tokens.append(next_token(tokens))
            assert tokens == seq.token_ids
            assert seq.finish_reason == "abort" or seq.num_output_tokens == seq.sampling_params.max_tokens
        seen["preemptions"] += self.scheduler.num_preemptions
        seen["hits"] += sum(seq.num_cached_tokens > 0 for seq in self.sequences.values())
        seen["one block"] += manager.num_blocks == 1

    def _step(self):
        if self.speculation:
            free = self.scheduler.block_manager.num_free_blocks
            self.speculation.propose()
            seen["drafts"] += sum(len(seq.draft_token_ids) for seq in self.scheduler.running)
            needs = [max(0, self.scheduler.block_manager.num_new_blocks(seq, len(seq))) for seq in self.scheduler.running]
            if self.scheduler.block_manager.num_free_blocks < free:
                assert sum(needs) <= self.scheduler.block_manager.num_free_blocks, "a draft takes a block that others need"
        batch = self.scheduler.schedule()
        seen["steps"] += bool(batch.items)
        assert batch.num_tokens <= self.budget
        assert batch.items or not self.scheduler.has_unfinished or batch.preempted
        assert not {item.seq.seq_id for item in batch.items} & {seq.seq_id for seq in batch.preempted}
        waiting = {item.seq.seq_id for item in batch.items if item.seq.num_uncomputed_tokens == 1}
        decoding = {seq.seq_id for seq in self.scheduler.running if seq.num_uncomputed_tokens == 1}
        assert decoding <= waiting, "a running sequence missed its turn"
        self.scheduler.update(batch, self.runner.run(batch))  # which raises when two tokens are written to one slot
        for item in batch.items:
            if item.num_drafts and not item.seq.is_finished:
                size, seq = self.block_size, item.seq
                assert len(seq.block_table) == -(-seq.num_computed_tokens // size), "refused drafts keep a block"
        if self.speculation:
            self.speculation.learn(batch)
        self.promises_hold()


@pytest.mark.unmeasured
def test_every_promise_holds_after_each_of_ten_thousand_steps():
    seen.clear()
    run_state_machine_as_test(Serving, settings=settings(
        max_examples=560, stateful_step_count=24, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)))
    assert seen["steps"] >= 10_000, seen
    assert seen["drafts"] >= 2000, seen
    assert min(seen["aborts"], seen["preemptions"], seen["hits"]) >= 200 and seen["one block"] >= 5, seen
