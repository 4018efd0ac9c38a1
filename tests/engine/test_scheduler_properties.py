"""Random arrivals, steps and aborts against every invariant of the scheduler and the block manager."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams

from .fake_model import make, next_token


class Serving(RuleBasedStateMachine):
    @initialize(block_size=st.sampled_from([1, 2, 3, 4, 16]), capacity=st.integers(12, 60), budget=st.integers(1, 40),
                cap=st.integers(1, 8), caching=st.booleans())
    def start(self, block_size, capacity, budget, cap, caching):
        self.capacity = -(-capacity // block_size) * block_size
        self.scheduler, self.runner = make(self.capacity // block_size, block_size, caching, max_num_seqs=cap,
                                           max_num_batched_tokens=budget)
        self.cap, self.budget = cap, budget
        self.sequences = {}

    @rule(shared=st.integers(0, 10), tail=st.lists(st.integers(0, 2), max_size=6), max_tokens=st.integers(1, 12))
    def add(self, shared, tail, max_tokens):
        prompt = list(range(shared)) + tail or [0]
        max_tokens = min(max_tokens, self.capacity + 1 - len(prompt))
        if max_tokens >= 1:
            seq = Sequence(len(self.sequences), prompt, SamplingParams(max_tokens=max_tokens))
            self.sequences[seq.seq_id] = seq
            self.scheduler.add(seq)

    @rule(steps=st.integers(1, 6))
    def run(self, steps):
        for _ in range(steps):
            self._step()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def abort(self, data):
        self.scheduler.abort(data.draw(st.sampled_from(sorted(self.sequences))))

    @invariant()
    def books_balance(self):
        self.scheduler.check_integrity()
        assert len(self.scheduler.running) <= self.cap

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(4000):
            if not self.scheduler.has_unfinished:
                break
            self._step()
        assert not self.scheduler.has_unfinished, "an admitted request never ended"
        manager = self.scheduler.block_manager
        assert manager.num_free_blocks == manager.num_blocks
        for seq in self.sequences.values():
            tokens = list(seq.prompt_token_ids)
            while len(tokens) < len(seq):
                tokens.append(next_token(tokens))
            assert tokens == seq.token_ids
            assert seq.finish_reason == "abort" or seq.num_output_tokens == seq.sampling_params.max_tokens

    def _step(self):
        batch = self.scheduler.schedule()
        assert batch.num_tokens <= self.budget
        assert batch.items or not self.scheduler.has_unfinished or batch.preempted
        self.scheduler.update(batch, self.runner.run(batch))
        self.scheduler.check_integrity()


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True,
                                suppress_health_check=list(HealthCheck))
