"""The device could draft, and it is not worth it, or there is nothing to draft: most steps then go by without a look."""

import pytest

from nanovllm.engine.drafts import Drafter
from nanovllm.engine.drafts_ahead import PAUSE
from nanovllm.sampling_params import SamplingParams
from nanovllm.speculative_config import SpeculativeConfig

from .fake_model import make_engine


class Noting(Drafter):
    """Finds something from `finds_at` tokens of output on, and notes how long the text was at each look."""

    def __init__(self, finds_at=0):
        self.finds_at, self.looks = finds_at, []

    def propose(self, sequences, limits):
        return [[] for _ in sequences]

    def likely(self, seq):
        self.looks.append((seq.seq_id, seq.num_output_tokens))
        return seq.num_output_tokens >= self.finds_at


def engine_with(drafter, chance):
    """Its device's drafts are right with such a chance."""
    return make_engine(num_blocks=2000, drafter=drafter, ahead=chance,
                       speculative_config=SpeculativeConfig(num_speculative_tokens=3))


def run(engine, num_steps):
    for _ in range(num_steps):
        engine.step()


def drafted(engine):
    return engine.speculation.counts.drafted


def test_where_drafts_are_wrong_few_steps_look_and_they_are_tried_again():
    engine = engine_with(drafter := Noting(), chance=0.0)
    for i in range(4):
        engine.add_request([i], SamplingParams(max_tokens=300, ignore_eos=True))
    run(engine, 60)
    before, looks = drafted(engine), len(drafter.looks)
    assert before > 0  # it was found out
    run(engine, 200)
    assert len(drafter.looks) - looks <= 4 * 200 / PAUSE
    assert 0 < drafted(engine) - before < 100  # a trial or two


def test_where_nothing_is_found_one_step_in_four_looks_and_what_comes_is_found_soon():
    engine = engine_with(drafter := Noting(finds_at=100), chance=1.0)
    engine.add_request([1], SamplingParams(max_tokens=300, ignore_eos=True))
    while not drafted(engine):
        engine.step()
        assert engine.scheduler.running[0].num_output_tokens < 115
    looked_at = [length for _, length in drafter.looks if length < 100]
    assert 100 / 5 <= len(looked_at) <= 100 / 3
    while engine.has_unfinished:
        engine.step()
    assert engine.num_steps < 180  # 100 steps, and 200 tokens in some fifty


@pytest.mark.parametrize("change", ["one comes", "one is aborted", "one waits"])
def test_who_comes_or_goes_ends_a_pause(change):
    engine = engine_with(Noting(), chance=0.0)
    ids = [engine.add_request([i], SamplingParams(max_tokens=300, ignore_eos=True)).seq_id for i in range(3)]
    speculation = engine.speculation
    run(engine, 40)
    while not speculation._pause > 4:
        engine.step()
    paused_for = speculation._paused_for
    if change == "one comes":
        engine.add_request([9], SamplingParams(max_tokens=300, ignore_eos=True))
        run(engine, 2)
        assert len(engine.scheduler.running) == 4
    elif change == "one is aborted":
        engine.abort(ids[0])
    else:
        engine.scheduler.max_num_seqs = 3
        engine.add_request([9], SamplingParams(max_tokens=300, ignore_eos=True))
    assert not speculation._pauses() or speculation._paused_for != paused_for


def test_a_pause_keeps_no_sequence_that_has_ended():
    engine = engine_with(Noting(finds_at=1000), chance=1.0)
    engine.add_request([1], SamplingParams(max_tokens=30, ignore_eos=True))
    paused = False
    while engine.has_unfinished:
        engine.step()
        paused = paused or bool(engine.speculation._paused_for)
    assert paused and not engine.speculation._paused_for


def test_a_pause_ends_with_an_outcome_that_it_did_not_count_on():
    """Where the host is a step ahead, it decides before the last drafts are compared."""
    engine = engine_with(Noting(), chance=1.0)
    engine.add_request([1], SamplingParams(max_tokens=300, ignore_eos=True))
    while not drafted(engine):
        engine.step()
    speculation = engine.speculation
    assert any(item.num_reserved for step in engine._in_flight for item in step.batch.items)
    speculation._pause_for(engine.scheduler.running, 4)
    engine.step()
    assert not speculation._pauses()


def test_more_than_may_draft_are_not_looked_at():
    engine = make_engine(num_blocks=2000, drafter=(drafter := Noting()), ahead=1.0,
                         speculative_config=SpeculativeConfig(num_speculative_tokens=3, disable_by_batch_size=4))
    for i in range(4):
        engine.add_request([i], SamplingParams(max_tokens=30, ignore_eos=True))
    run(engine, 20)
    assert not drafter.looks and not drafted(engine)


def test_steps_without_drafts_are_left_only_for_a_clear_gain():
    """The way there and back is long; whoever has gone it stays for as long as there is any gain."""
    engine = engine_with(Noting(), chance=1.0)
    engine.add_request([1], SamplingParams(max_tokens=300, ignore_eos=True))
    speculation, gain = engine.speculation, 1.05
    speculation._fastest = lambda lengths, chances, least=1.0: lengths[-1] if gain > least else 0
    run(engine, 10)
    assert not drafted(engine)
    gain = 1.2
    run(engine, 10)
    assert (before := drafted(engine)) > 0
    gain = 1.05
    run(engine, 10)
    assert drafted(engine) > before + 15
    gain = 0.95
    run(engine, 3)
    before = drafted(engine)
    run(engine, 10)
    assert drafted(engine) == before
