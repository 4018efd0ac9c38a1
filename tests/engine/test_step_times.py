"""Step times, and what is made of them: drafts where they pay, none where even right ones would not."""

import pytest

from nanovllm.engine.drafts_control import Speculation, best_length
from nanovllm.engine.step_times import ENOUGH, EXPIRES, FIRST, StepTimes
from nanovllm.sampling_params import SamplingParams
from nanovllm.speculative_config import SpeculativeConfig

from .fake_model import FakeDrafter, make_engine


def timed(*kinds):
    """kinds: (sequences, drafts, seconds a step), ENOUGH + 1 steps of each."""
    times, now = StepTimes(), 0.0
    for num_seqs, num_drafts, seconds in kinds:
        for _ in range(ENOUGH + 1):
            now += seconds
            times.note(num_seqs, num_drafts, now)
        times.interrupt()
    return times


def test_what_is_not_measured_is_counted():
    assert StepTimes().ratio(1, 4, 0.1) == pytest.approx(1.4)
    assert timed((1, 0, 1.0)).ratio(1, 4, 0.1) == pytest.approx(1.4)
    assert timed((1, 0, 1.0), (1, 4, 3.0)).ratio(8, 4, 0.1) == pytest.approx(1.4)  # another batch size


def test_what_is_measured_overrules_counting_and_its_neighbours_are_counted_from_it():
    times = timed((1, 0, 1.0), (1, 4, 3.0))
    assert times.ratio(1, 4, 0.1) == pytest.approx(3.0)
    assert times.ratio(1, 2, 0.1) == pytest.approx(2.8)
    assert best_length(0.99, lambda k: times.ratio(1, k, 0.1), 4) == 4
    assert best_length(0.5, lambda k: times.ratio(1, k, 0.1), 4) == 0  # 1.94 tokens for three times the time
    slow = timed((1, 0, 1.0), (1, 4, 6.0))
    assert best_length(1.0, lambda k: slow.ratio(1, k, 0.1), 4) == 0


def test_going_over_to_drafts_and_back_is_counted_as_theirs():
    """Steps take as long with drafts as without, and every change of kind half a step more."""
    for num_plain, num_drafting, rounds, ratio in ((3, 1, 2 * ENOUGH, 2.0), (3, 2, 2 * ENOUGH, 1.5), (ENOUGH + 2, 40, 1, 1.0)):
        times, now, before = StepTimes(), 0.0, 0
        for _ in range(rounds):
            for drafts in num_plain * [0] + num_drafting * [4]:
                now += 1.0 + 0.5 * (drafts != before)
                before = drafts
                times.note(1, drafts, now)
        assert times.ratio(1, 4, 0.1) == pytest.approx(ratio)


def test_a_step_without_drafts_counts_only_behind_one_of_its_kind():
    times = StepTimes()
    for i in range(4 * ENOUGH):  # never twice the same
        times.note(1, 4 * (i % 2), float(i))
    assert times.lacks_plain(1) and times.ratio(1, 4, 0.1) == pytest.approx(1.4)
    times = StepTimes()
    for i in range(4 * ENOUGH):  # a prompt between any two
        times.note(1, 4, float(i))
        times.interrupt()
    assert not times.lacks_plain(1)


def test_what_launching_drafts_takes_is_not_the_time_of_the_step_that_runs_meanwhile():
    """The host launches a step before it looks at the end of the one in flight. Steps take 1, the way to drafts 3 more."""
    times, now = StepTimes(), 0.0
    for _ in range(4 * ENOUGH):
        for drafts, seconds, before_drafts in ((0, 1.0, False), (0, 1.0, False), (0, 4.0, True), (4, 1.0, False)):
            now += seconds
            times.note(1, drafts, now, before_drafts)
    assert times.ratio(1, 4, 0.1) == pytest.approx(4.0)


def test_a_wrong_time_is_not_believed_for_ever():
    """The other kind is not seen any more, once it is thought to be the slower one."""
    times, now = timed((1, 0, 5.0)), 1000.0
    for patience in (FIRST, 2 * FIRST):
        for _ in range(patience):
            assert not times.lacks_plain(1)
            now += 2.0
            times.note(1, 4, now)
        assert times.lacks_plain(1)
        for _ in range(ENOUGH + 1):
            now += 1.0
            times.note(1, 0, now)
        assert not times.lacks_plain(1) and times.ratio(1, 4, 0.1) == pytest.approx(2.0)


def test_a_late_end_changes_little():
    times = timed((1, 0, 1.0), (1, 4, 2.0))
    times.note(1, 4, 1000.0)
    times.note(1, 4, 1002.0)
    times.note(1, 4, 1500.0)
    assert times.ratio(1, 4, 0.1) == pytest.approx(2.0)


def test_some_steps_without_drafts_are_taken_to_compare_and_drafts_are_timed_anew_after_long():
    times = timed((3, 4, 2.0))
    assert times.lacks_plain(2) and not times.lacks_plain(1)
    for i in range(EXPIRES):
        times.note(3, 0, float(i))
    assert not times.lacks_plain(3) and times.ratio(3, 4, 0.1) == pytest.approx(1.4)


class Clock:
    """A machine on which a step with drafts takes `slow` times as long as one without."""

    def __init__(self, slow):
        self.now, self.slow = 0.0, slow

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("slow, pays", [(1.2, True), (9.0, False)])
def test_drafts_end_where_the_clock_says_that_they_do_not_pay(monkeypatch, slow, pays):
    engine = make_engine(drafter=FakeDrafter(1.0), speculative_config=SpeculativeConfig(num_speculative_tokens=4))
    engine.speculation.drafter.random.random = lambda: 0.0  # always right
    engine.speculation = Speculation(engine.speculation.drafter, engine.scheduler, SpeculativeConfig(), 1000, times=StepTimes())
    clock = Clock(slow)
    monkeypatch.setattr("nanovllm.engine.drafts_control.time", clock)
    seq, drafted = engine.add_request([1, 2, 3], SamplingParams(max_tokens=250)), []
    while engine.has_unfinished:
        before = engine.speculation.counts.drafted
        update = engine.scheduler.update

        def updating(batch, tokens, update=update):
            clock.now += clock.slow if batch.items[0].num_drafts else 1.0
            return update(batch, tokens)

        engine.scheduler.update = updating
        engine.step()
        engine.scheduler.update = update
        drafted.append(engine.speculation.counts.drafted - before)
    assert seq.num_output_tokens == 250
    if pays:
        assert drafted.count(0) <= ENOUGH + 4 and len(drafted) < 90
    else:
        assert sum(drafted[30:]) == 0 and all(drafted[1:1 + ENOUGH])
