"""The simulation runs the real thing: its decisions are the scheduler's, and a changed setting changes nothing else."""

import subprocess
import sys

import pytest

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.simulation import Simulation
from nanovllm.sampling_params import SamplingParams


def busy(**settings) -> Simulation:
    simulation = Simulation(**dict(num_blocks=12, block_size=4, max_num_batched_tokens=16) | settings)
    for at in range(3):
        simulation.add(f"You are a helpful assistant . Answer kindly . Question number {at}", 14, at=at)
    simulation.add(30, 9, at=5)
    return simulation


def drawn(trace) -> dict[int, list[int]]:
    tokens = {}
    for record in trace:
        for seq_id, token in record.tokens.items():
            tokens.setdefault(seq_id, []).append(token)
    return tokens


def test_serves_everything_and_keeps_the_books():
    simulation = busy()
    while simulation.has_unfinished:
        simulation.step()
        simulation.scheduler.check_integrity()
    assert {i: len(tokens) for i, tokens in drawn(simulation.trace).items()} == {0: 14, 1: 14, 2: 14, 3: 9}
    assert len(simulation.eviction_orders) == len(simulation.trace)
    assert sorted(simulation.eviction_orders[len(simulation.trace) - 1]) == list(range(12))
    assert simulation.trace[-1].time == pytest.approx(sum(r.duration for r in simulation.trace.records[:-1]))


def test_requests_arrive_when_they_were_said_to():
    trace = busy().run()
    first_seen = {i: next(r.step for r in trace if i in (*r.running, *r.waiting)) for i in range(4)}
    assert first_seen == {0: 0, 1: 1, 2: 2, 3: 5}


def test_a_later_arrival_comes_at_once_when_nothing_else_runs():
    simulation = Simulation()
    simulation.add(4, 2, at=0)
    simulation.add(4, 2, at=50)
    assert len(simulation.run()) == 4


def test_another_cache_serves_the_same_tokens_with_other_decisions():
    simulation = busy()
    before = simulation.run()
    assert any(r.preempted for r in before)
    after = simulation.set(num_blocks=40)
    assert not any(r.preempted for r in after) and len(after[0].blocks) == 40
    assert drawn(after) == drawn(before)
    assert drawn(simulation.set(max_num_batched_tokens=5)) == drawn(before)
    assert all(r.num_prefill_tokens + r.num_decode_tokens <= 5 for r in simulation.trace)


def test_a_setting_that_does_not_fit_changes_nothing():
    simulation = busy()
    trace = simulation.run()
    with pytest.raises(ValueError, match=r"prompt \+ max_tokens=39"):
        simulation.set(num_blocks=9)
    assert simulation.trace is trace and simulation.scheduler.block_manager.num_blocks == 12
    with pytest.raises(ValueError, match="setting='colour': must be one of num_blocks"):
        simulation.set(colour=3)


def test_an_unfinished_run_is_repeated_as_far_as_it_went():
    simulation = busy()
    simulation.run(4)
    assert len(simulation.set(num_blocks=20)) == 4


def test_rewind_forgets_what_came_later_and_goes_on_from_there():
    simulation = busy()
    first = list(simulation.run())
    simulation.add("and one more", 3)
    simulation.run()
    simulation.rewind(6)
    assert list(simulation.trace) == first[:6] and simulation.has_unfinished
    assert list(simulation.run()) == first


def test_abort_frees_and_is_repeated_too():
    simulation = busy()
    simulation.run(3)
    simulation.abort(1)
    assert 1 not in {s.seq_id for s in simulation.scheduler.running}
    simulation.run()
    aborted = list(simulation.trace)
    assert list(simulation.set(num_blocks=12)) == aborted


def test_drives_a_scheduler_of_your_own():
    class NewestFirst(Scheduler):
        def add(self, seq):
            super().add(seq)
            self.waiting.insert(0, self.waiting.pop())

    scheduler = NewestFirst(BlockManager(32, 4), max_num_batched_tokens=16)
    for i in range(2):
        scheduler.add(Sequence(i, [1, 2, 3, i], SamplingParams(max_tokens=3)))
    simulation = Simulation.of(scheduler)
    assert simulation.scheduler is scheduler and simulation.trace.meta["prompts"] == {0: 4, 1: 4}
    simulation.run()
    assert [s["seq_id"] for s in simulation.trace[0].scheduled] == [1, 0]
    assert simulation.add("three more words", 2) == 2
    simulation.set(num_blocks=16)
    simulation.run()
    assert type(simulation.scheduler) is NewestFirst and drawn(simulation.trace).keys() == {0, 1, 2}
    with pytest.raises(ValueError, match="running sequences=1"):
        running = NewestFirst(BlockManager(32, 4))
        running.add(Sequence(0, [1], SamplingParams()))
        running.schedule()
        Simulation.of(running)


def test_a_scheduler_that_runs_nobody_is_reported():
    class Idle(Scheduler):
        def _admit(self, budget, batch):
            pass

    simulation = Simulation(scheduler_cls=Idle)
    simulation.add(3)
    with pytest.raises(RuntimeError, match="scheduled nothing"):
        simulation.run()


def test_prompts_are_words_ids_or_lengths():
    simulation = Simulation()
    texts = [simulation.add(prompt, 1) for prompt in ("the cat saw the cat", [5, 6, 7], 4)]
    assert texts == [0, 1, 2]
    assert " ".join(simulation.decode(t) for t in simulation.prompts[0]) == "the cat saw the cat"
    assert simulation.prompts[1] == [5, 6, 7] and len(set(simulation.prompts[2])) == 4
    with pytest.raises(ValueError, match="prompt length=0"):
        simulation.add("")


def test_imports_no_torch():
    code = "import sys, nanovllm.fleet.simulation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
