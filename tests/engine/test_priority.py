"""Who comes first: priority, and waiting that outweighs it in the end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.sequence_queues import STEPS_PER_PRIORITY
from nanovllm.sampling_params import SamplingParams

from .fake_model import make, step


def seq(seq_id, priority=0, max_tokens=3, prompt=None):
    return Sequence(seq_id, prompt or [seq_id + 1] * 3, SamplingParams(max_tokens=max_tokens), priority)


def test_less_is_served_sooner_and_equals_in_order_of_arrival():
    scheduler, runner = make(max_num_seqs=1)
    order = []
    for i, priority in enumerate([0, 5, -1, 0, 5, -1]):
        scheduler.add(seq(i, priority))
    while scheduler.has_unfinished:
        order += [s.seq_id for s in step(scheduler, runner)[1]]
    assert order == [2, 5, 0, 3, 1, 4]


def test_who_is_thrown_out_stands_last_in_line():
    scheduler, runner = make(num_blocks=9, block_size=2, caching=False)
    urgent_but_late = [seq(0, 3, 12, [1, 2]), seq(1, 0, 12, [3, 4]), seq(2, -3, 12, [5, 6])]
    for s in urgent_but_late:
        scheduler.add(s)
    thrown_out = []
    while scheduler.has_unfinished:
        thrown_out += [s.seq_id for s in step(scheduler, runner)[0].preempted]
    assert thrown_out and thrown_out[0] == 0 and 2 not in thrown_out


def test_an_endless_stream_of_urgent_requests_starves_nobody():
    scheduler, runner = make(max_num_seqs=1, caching=False)
    patient, arrived = seq(0, priority=2), 1
    scheduler.add(patient)
    for _ in range(2 * STEPS_PER_PRIORITY):
        assert not patient.num_output_tokens, "a priority that does not matter"
        scheduler.add(seq(arrived, max_tokens=1))  # one request a step, as many as can be served
        arrived += 1
        step(scheduler, runner)
    step(scheduler, runner)
    assert patient.num_output_tokens == 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrivals=st.lists(st.lists(st.tuples(st.integers(-1, 1), st.integers(1, 6)), max_size=3), min_size=20, max_size=150),
       cap=st.integers(1, 3), num_blocks=st.integers(6, 20))
def test_no_one_is_overtaken_by_whoever_arrives_long_after(arrivals, cap, num_blocks):
    scheduler, runner = make(num_blocks=num_blocks, block_size=2, caching=False, max_num_seqs=cap)
    sequences, arrived_in, admitted_in, steps = [], [], {}, 0
    while steps < len(arrivals) or scheduler.has_unfinished:
        for priority, max_tokens in arrivals[steps] if steps < len(arrivals) else ():
            sequences.append(seq(len(sequences), priority, max_tokens))
            arrived_in.append(steps)
            scheduler.add(sequences[-1])
        for s in step(scheduler, runner)[0].admitted:
            admitted_in.setdefault(s.seq_id, steps)
        steps += 1
        assert steps < 10_000, "someone starves"
    assert all(s.finish_reason == "length" for s in sequences)
    arrived, admitted = np.array(arrived_in), np.array([admitted_in[s.seq_id] for s in sequences])
    priority = np.array([s.priority for s in sequences])
    # Row a, column b: b came so much later than a that no priority of its own may put it first, and a was there already.
    too_late = arrived > (arrived + STEPS_PER_PRIORITY * priority)[:, None] - STEPS_PER_PRIORITY * priority
    was_there = admitted >= arrived[:, None]
    assert (admitted[:, None] <= admitted)[too_late & was_there].all()


def test_a_policy_of_your_own():
    class ShortestFirst(Scheduler):
        def order_key(self, seq):
            return seq.num_prompt_tokens

    scheduler, runner = make(max_num_seqs=1)
    scheduler = ShortestFirst(scheduler.block_manager, max_num_seqs=1)
    for i, length in enumerate([5, 2, 9, 1]):
        scheduler.add(seq(i, prompt=[i + 1] * length, max_tokens=1))
    order = []
    while scheduler.has_unfinished:
        order += [s.seq_id for s in step(scheduler, runner)[1]]
    assert order == [3, 1, 0, 2]


@pytest.mark.parametrize("priority", [101, -101, 0.5, "high"])
def test_a_priority_out_of_range_is_refused(priority):
    scheduler, _ = make()
    with pytest.raises(ValueError, match=r"priority=.*: must be a whole number in \[-100, 100\]"):
        scheduler.add(seq(0, priority))
