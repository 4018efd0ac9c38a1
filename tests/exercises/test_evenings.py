"""Chapter 05's evenings: what its pictures say of them is what the scheduler counted."""

import pytest

from chapters.exercises import ch05
from nanovllm.engine.scheduler import Scheduler


@pytest.mark.parametrize("num_blocks", [17, 24, 40])
def test_the_reserve_of_a_trace_is_what_admission_counts(num_blocks):
    evening, counted = ch05._evening(Scheduler, 1, num_blocks), []
    while evening.has_unfinished:
        evening.step()
        scheduler = evening.scheduler
        promised = sum(scheduler.block_manager.num_new_blocks(seq, len(seq)) for seq in scheduler.running)
        counted.append(promised + len(scheduler.running))
    assert ch05.reserves(evening.trace) == counted and max(counted) > 4


def test_the_gaps_of_an_answer_are_the_times_between_its_tokens():
    trace = ch05._evening(Scheduler, 0, 24).run()
    ends = {seq_id: [r.time + r.duration for r in trace if seq_id in r.tokens] for seq_id in (0, 5)}
    for seq_id, times in ends.items():
        gaps = ch05.gaps(trace, seq_id)
        assert list(gaps) == list(range(2, len(times) + 1))
        assert sum(gaps.values()) == pytest.approx(1e3 * (times[-1] - times[0]))
