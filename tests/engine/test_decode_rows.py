"""What the device's rows hold after any sequence of steps is what the whole layout of each step says."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nanovllm.engine.cuda_graphs import batch_sizes
from nanovllm.engine.decode_rows import DecodeRows
from nanovllm.engine.step_inputs import Layout
from nanovllm.layers import row_state
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.row_state import RowState

from .fake_model import FakeRunner, make_engine


def test_every_batch_has_a_size_and_little_padding():
    for most in (1, 2, 3, 5, 17, 20, 100, 256, 500, 1024):
        sizes = batch_sizes(most)
        assert sizes == sorted(set(sizes)) and sizes[-1] == most
        rows = DecodeRows(sizes, 16, 4)
        for count in range(1, most + 1):
            size = rows.size_for(count)
            assert count <= size <= most
            assert size == count or size - count < max(size / 5, 8)
    assert len(batch_sizes(512)) == 23


class RowsRunner(FakeRunner):
    """Runs steps of one token a sequence from rows, as the graphs do, and checks what they would read."""

    def __init__(self, num_blocks, block_size, most, max_model_len, kernels=row_state):
        super().__init__(num_blocks, block_size)
        max_blocks = -(-max_model_len // block_size)
        self.rows = DecodeRows(batch_sizes(most), block_size, max_blocks)
        self.state = RowState.empty(most, max_blocks, "cpu")
        self.kernels, self.last, self.last_by = kernels, torch.zeros(1, dtype=torch.int64), {}
        self.num_decode_steps = self.num_written = self.num_rows = 0

    def reset(self):
        super().reset()
        if hasattr(self, "rows"):
            self.rows.reset()
            self.last_by = {}

    def run(self, batch):
        items, state = batch.items, getattr(self, "state", None)
        decodes = all(item.samples and item.num_tokens == 1 for item in items)
        if decodes:
            size, records, entries = self.rows.assign(items, self.last_by)
            self.num_decode_steps, self.num_written = self.num_decode_steps + 1, self.num_written + len(records)
            self.num_rows += len(items)
            if len(records) or len(entries):
                self.kernels.write_rows(state, torch.from_numpy(records), torch.from_numpy(entries), self.last)
            self.kernels.advance(state, size, self.block_size)
            self.check(items, size)
        else:
            self.rows.invalidate()
        token_ids = super().run(batch)
        if decodes:
            state.drawn[:size] = 777  # rows of nobody draw, too
            state.drawn[self.rows.rows] = torch.tensor(token_ids)
            self.last, self.last_by = state.drawn, self.rows.row_of
        else:
            sampled = [item.seq.seq_id for item in items if item.samples]
            self.last = torch.tensor(token_ids, dtype=torch.int64)
            self.last_by = {seq_id: i for i, seq_id in enumerate(sampled)}
        return token_ids

    def check(self, items, size):
        state, rows = self.state, self.rows.rows
        layout = Layout.of(items, self.block_size)
        for row, seq_id in zip(layout.pending, layout.pending_ids):
            layout.input_ids[row] = self.drawn[seq_id][0]
        assert len(set(rows.tolist())) == len(items) and max(rows) < size
        for name in ("input_ids", "positions", "slot_mapping", "context_lens"):
            np.testing.assert_array_equal(getattr(state, name).numpy()[rows], getattr(layout, name), name)
        tables = state.block_tables.numpy()[rows, :layout.block_tables.shape[1]]
        for table, item in zip(tables, items):
            assert table[:len(item.seq.block_table)].tolist() == item.seq.block_table
        for row, item in zip(rows, items):
            p = item.seq.sampling_params
            assert state.seeds[row] == item.seq.seed and float(state.temperatures[row]) == np.float32(p.temperature)
            assert state.offsets[row] == item.start + 1 - item.seq.num_prompt_tokens
        padding = np.setdiff1d(np.arange(size), rows)
        assert (state.context_lens.numpy()[padding] == 0).all() and (state.slot_mapping.numpy()[padding] == -1).all()
        assert (state.input_ids.numpy()[padding] == 0).all()


def serve(rng, *, block_size, num_blocks, most, budget, ahead, caching, fail):
    engine = make_engine(num_blocks=num_blocks, block_size=block_size, caching=caching, looks_ahead=ahead,
                         eos_token_ids=(3, 4), max_num_seqs=most, max_num_batched_tokens=budget, max_model_len=40)
    runner = engine.model_runner = RowsRunner(num_blocks, block_size, min(most, budget), 40)
    open_ = []
    for _ in range(120):
        if rng.random() < 0.15:
            prompt = rng.choice(([5, 6, 7, 8, 9, 10, 11, 12], [rng.randrange(50) for _ in range(rng.randint(1, 12))]))
            params = SamplingParams(max_tokens=rng.randint(1, 20), temperature=rng.choice((0.0, 0.7)),
                                    ignore_eos=rng.random() < 0.5)
            open_.append(engine.add_request(prompt[:30], params))
        if open_ and rng.random() < 0.03:
            engine.abort(rng.choice(open_).seq_id)
        if fail and rng.random() < 0.05:
            engine._roll_back()
        engine.step()
        engine.check_integrity()
    while engine.has_unfinished:
        engine.step()
    return runner


@pytest.mark.unmeasured
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False), block_size=st.sampled_from([1, 3, 4, 16]), most=st.sampled_from([1, 3, 6, 20]),
       budget=st.sampled_from([4, 16, 200]), tight=st.booleans(), ahead=st.booleans(), caching=st.booleans(),
       fail=st.booleans())
def test_rows_are_what_each_step_needs(rng, block_size, most, budget, tight, ahead, caching, fail):
    num_blocks = -(-(60 if tight else 400) // block_size)
    serve(rng, block_size=block_size, num_blocks=num_blocks, most=most, budget=budget, ahead=ahead, caching=caching, fail=fail)


def test_a_row_that_stays_is_written_once():
    engine = make_engine(max_model_len=200, looks_ahead=True)
    runner = engine.model_runner = RowsRunner(64, 4, 8, 200)
    for i in range(5):
        engine.add_request([i + 1, 2], SamplingParams(max_tokens=30, ignore_eos=True))
    while engine.has_unfinished:
        engine.step()
    assert runner.num_decode_steps == 29 and runner.num_rows == 5 * 29 and runner.num_written == 5


def test_rows_left_at_the_end_close_ranks():
    """Twenty run, most of them shortly; the long ones end up in the first rows of a small batch."""
    engine = make_engine(num_blocks=200, max_model_len=60)
    runner = engine.model_runner = RowsRunner(200, 4, 20, 60)
    for i in range(20):
        engine.add_request([i + 1, 2], SamplingParams(max_tokens=40 if i % 5 == 4 else 5, ignore_eos=True))
    for _ in range(20):
        engine.step()
    assert runner.rows.size_for(4) == 4 and sorted(runner.rows.rows.tolist()) == [0, 1, 2, 3]
    assert runner.num_written < 20 + 4 + 20 + 1  # all once, the four moved, and each row emptied


