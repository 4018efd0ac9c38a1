"""What a token is found to cost, by a clock that the test moves, and what the engine makes of it."""

import os
import shutil
from types import SimpleNamespace

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.engine import drafts_ahead
from nanovllm.engine.token_cost import CONTEXT, MORE, ROUNDS, measured_token_cost
from nanovllm.speculative_config import SpeculativeConfig

from .fake_model import FakeDrafter, make_engine


class TimedRunner:
    """A step of n tokens takes 1 + token_cost * (n - 1) seconds of its own clock; each `late`-th one takes a second more."""

    def __init__(self, token_cost, num_blocks=8, late=0):
        self.token_cost, self.num_blocks, self.late = token_cost, num_blocks, late
        self.now, self.batches, self.is_reset = 0.0, [], False

    def clock(self):
        return self.now

    def launch(self, batch):
        item, = batch.items
        self.batches.append((item.start, item.num_tokens, len(item.drawn_positions)))
        assert max(item.seq.block_table) < self.num_blocks
        self.now += 1 + self.token_cost * (item.num_tokens - 1) + bool(self.late and len(self.batches) % self.late == 0)
        return batch

    def collect(self, launched):
        return [0]

    def reset(self):
        self.is_reset = True


@pytest.mark.parametrize("token_cost", [0.0, 0.005, 0.08, 1.0])
@pytest.mark.parametrize("late", [0, 3])
def test_the_cost_is_what_a_longer_step_takes_more(token_cost, late):
    runner = TimedRunner(token_cost, late=late)
    runner.clock = lambda: runner.now / 1000  # milliseconds, so that all rounds find time
    assert measured_token_cost(runner, 8, 64, 0.03, runner.clock) == pytest.approx(token_cost)
    assert runner.is_reset and len(runner.batches) == 1 + 2 * ROUNDS
    # A prompt, then steps of one token and of some more, which draw as many.
    assert runner.batches[0][:2] == (0, CONTEXT)
    assert set(runner.batches[1:]) == {(CONTEXT - 1, 1, 1), (CONTEXT - 1, 1 + MORE, 1 + MORE)}


def test_a_slow_model_is_tried_twice_and_no_longer():
    runner = TimedRunner(0.01)
    assert measured_token_cost(runner, 8, 64, 0.03, runner.clock) == pytest.approx(0.01)
    assert len(runner.batches) == 1 + 2 * 2


def test_a_cost_below_nothing_is_none():
    runner = TimedRunner(-0.05)
    assert measured_token_cost(runner, 8, 64, 0.03, runner.clock) == 0.0


@pytest.mark.parametrize("block_size, num_blocks, max_model_len", [(8, 2, 64), (8, 8, CONTEXT + MORE - 1), (64, 0, 64)])
def test_without_room_nothing_runs_and_the_expected_cost_stands(block_size, num_blocks, max_model_len):
    runner = TimedRunner(0.5, num_blocks)
    assert measured_token_cost(runner, block_size, max_model_len, 0.03, runner.clock) == 0.03 and not runner.batches


def test_a_clock_too_coarse_to_tell_says_nothing():
    runner = TimedRunner(0.5)
    assert measured_token_cost(runner, 8, 64, 0.03, lambda: 0.0) == 0.03


@pytest.mark.parametrize("backend, tensor_parallel_size, measures", [("cpu", 1, True), ("torch", 1, False), ("cpu", 2, False)])
def test_only_the_cpu_backend_is_timed(monkeypatch, backend, tensor_parallel_size, measures):
    """Plain PyTorch is what chapters and tests repeat step by step."""
    monkeypatch.setattr(drafts_ahead, "measured_token_cost", lambda *args: 0.5)
    engine = make_engine(drafter=FakeDrafter(1.0), speculative_config=SpeculativeConfig())
    engine.config.attention_backend, engine.config.tensor_parallel_size = backend, tensor_parallel_size
    made = drafts_ahead.make_speculation(FakeDrafter(1.0), engine.scheduler, engine.config, False, SimpleNamespace())
    assert made.token_cost == (0.5 if measures else drafts_ahead.TOKEN_COST["cpu"])


def num_drafted(token_cost, num_seqs, chance=0.3):
    engine = make_engine(drafter=FakeDrafter(chance), speculative_config=SpeculativeConfig(), num_blocks=400)
    engine.speculation.token_cost = token_cost
    for i in range(num_seqs):
        engine.add_request([i, 2, 3], SamplingParams(max_tokens=100))
    while engine.has_unfinished:
        engine.step()
    return engine.speculation.counts.drafted


def test_where_tokens_are_dear_a_large_batch_drafts_little():
    assert num_drafted(0.3, 8) < 0.5 * num_drafted(0.005, 8)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler")
def test_a_real_engine_finds_its_cost_and_says_the_same():
    asked = [SamplingParams(temperature=1, seed=i, max_tokens=24, ignore_eos=True) for i in range(3)]
    texts = ["Once upon a time", "The fox said", "The fox said to the hen: The fox said to the hen"]
    settings = {"device": "cpu", "attention_backend": "cpu"}
    with LLM(**settings) as plain, LLM(speculative_config={"method": "ngram"}, **settings) as drafting:
        assert drafting.engine.speculation.token_cost >= 0 and not drafting.engine.num_steps
        assert ([out.token_ids for out in drafting.generate(texts, asked, use_tqdm=False)]
                == [out.token_ids for out in plain.generate(texts, asked, use_tqdm=False)])
        drafting.engine.check_integrity()
