"""A simulated fleet runs the real scheduler under a made-up clock: what it predicts is checked against what was measured."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import fleet as measured
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.fleet.arrivals import Arrival, TraceFile, Traffic
from nanovllm.fleet.cost_model import H200, CostModel
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.simulated_fleet import SimulatedFleet, compare
from nanovllm.fleet.timeline import MAX_INTERVALS, Timeline

RESULTS = json.loads(measured.RECORDED.read_text(encoding="utf-8"))
SMALL = replace(H200, num_blocks=64, block_size=16)
CHATS = Traffic(rate=40, num_conversations=64, system_prompts=4, system_tokens=128, prompt_tokens=40, output_tokens=30,
                turns=3, think_seconds=0.5, seed=1)


@pytest.mark.unmeasured
def test_predicted_throughput_is_within_a_tenth_of_the_recorded_one():
    rows = measured.run_errors(CostModel.fit(RESULTS), RESULTS)
    assert {name.split(",")[0] for name, _, _ in rows} >= {"256 requests", "1024 requests"}
    for name, recorded, predicted in rows:
        assert predicted == pytest.approx(recorded, rel=0.10), name


def test_the_model_passes_through_the_steps_it_was_fitted_to():
    for name, recorded, predicted in measured.step_errors(CostModel.fit(RESULTS), RESULTS):
        assert predicted == pytest.approx(recorded, rel=0.05), name


def test_the_shipped_model_is_the_one_that_the_results_file_gives():
    fitted = CostModel.fit(RESULTS)
    for name in CostModel.__slots__:
        assert getattr(H200, name) == pytest.approx(getattr(fitted, name), rel=0.01), \
            f"{name}: run `python -m benchmarks fleet` and copy its figures to nanovllm/fleet/cost_model.py"


def test_a_results_file_without_the_steps_is_refused():
    with pytest.raises(ValueError, match="section='decode step': must be in the results file"):
        CostModel.fit({"device": "x"})


def test_every_request_is_served_and_every_token_drawn():
    fleet = SimulatedFleet(FleetConfig(num_replicas=3), cost=SMALL)
    report = fleet.run(CHATS)
    wanted = [a.max_tokens + sum(t.max_tokens for t in a.turns) for a in CHATS]
    assert report.num_ended == 64 * 3 and report.refused == 0
    assert report.requests["output_tokens"].sum() == sum(wanted)
    for replica in fleet.replicas:
        replica.scheduler.check_integrity()
        assert not replica.scheduler.has_unfinished and replica.scheduler.block_manager.num_free_blocks == 64
    assert not fleet._in_flight and sum(fleet._loads.values()) == 0


def test_a_turn_waits_for_the_answer_and_carries_it():
    seen = []

    class Watched(Scheduler):
        def add(self, seq):
            seen.append(seq)
            super().add(seq)

    SimulatedFleet(FleetConfig(num_replicas=1), cost=SMALL, scheduler_cls=Watched).run(
        Traffic(rate=1, num_conversations=1, turns=3, system_tokens=16, prompt_tokens=8, output_tokens=8))
    first, second, third = seen
    for before, after in ((first, second), (second, third)):
        assert after.token_ids[:len(before)] == before.token_ids and after.num_prompt_tokens > len(before)
        assert after.scheduled_at > before.token_times[-1]


def test_the_same_arrivals_give_the_same_run():
    a, b = (SimulatedFleet(FleetConfig(), cost=SMALL).run(CHATS) for _ in range(2))
    assert str(a) == str(b) and [r.reason for r in a.log] == [r.reason for r in b.log]


def test_prefix_aware_finds_more_than_round_robin():
    """64 conversations, four system prompts, two replicas, on a device where a prompt token costs 0.1 ms."""
    slow = replace(SMALL, num_blocks=1024, prompt_token_s=1e-4, prompt_step_s=0)
    aware, robin = compare(FleetConfig(num_replicas=2), CHATS, cost=slow, router="round_robin")
    assert 1 - aware.hit_rate < 0.75 * (1 - robin.hit_rate)
    assert aware.ttft(50) < 0.9 * robin.ttft(50)


def test_a_step_is_never_longer_than_the_budget_allows_and_preemption_is_counted():
    config = FleetConfig(num_replicas=1, max_num_batched_tokens=64, num_blocks=24)
    report = SimulatedFleet(config, cost=replace(SMALL, num_blocks=24)).run(
        [Arrival(0.0, list(range(i * 1000, i * 1000 + 60)), 100, i) for i in range(4)])
    assert report.num_ended == 4 and sum(report.preemptions) > 0
    assert max(s.prompt_tokens + s.decode_tokens for s in report.steps) <= 64


def test_what_no_replica_can_serve_is_counted_as_refused():
    report = SimulatedFleet(FleetConfig(), cost=SMALL).run([Arrival(0.0, list(range(2000)), 5, 0), Arrival(0.1, [1], 2, 1)])
    assert (report.refused, report.num_ended) == (1, 1)


def test_prefill_beside_decode_moves_each_prompt_once():
    """One request: its second token comes after the transfer, and the decoding engine computes no prompt."""
    config = FleetConfig(num_replicas=2, prefill_replicas=1, transfer_bytes_per_s=1e9, transfer_latency_s=0.25)
    report = SimulatedFleet(config, cost=SMALL).run([Arrival(1.0, list(range(320)), 4, 0)])
    (row,) = report.log
    assert (row.replica, row.decode_replica) == (0, 1)
    assert row.first_token == pytest.approx(1.0 + SMALL.seconds(0, 0, 320))
    gap = 0.25 + 320 * SMALL.kv_bytes / 1e9
    decode = sum(SMALL.seconds(1, 321 + i, 0) for i in range(3))
    assert row.end == pytest.approx(row.first_token + gap + decode)
    assert [s.prompt_tokens for s in report.steps if s.replica == 1] == [0, 0, 0]
    assert report.requests["output_tokens"][0] == 4


def test_a_received_sequence_that_is_preempted_computes_its_prompt_again():
    config = FleetConfig(num_replicas=2, prefill_replicas=1, num_blocks=12)
    fleet = SimulatedFleet(config, cost=SMALL)
    report = fleet.run([Arrival(0.0, list(range(i * 1000, i * 1000 + 60)), 60, i) for i in range(3)])
    assert report.num_ended == 3 and report.preemptions[1] > 0
    assert sum(s.prompt_tokens for s in report.steps if s.replica == 1) > 0
    assert report.requests["output_tokens"].tolist() == [60] * 3
    for replica in fleet.replicas:
        replica.scheduler.check_integrity()


def test_a_scheduler_with_blocks_of_its_own_cannot_receive_and_is_told_so():
    class OwnBlocks(Scheduler):
        def __init__(self, blocks, **settings):
            super().__init__(BlockManager(blocks.num_blocks, blocks.block_size), **settings)

    arrivals = [Arrival(0.0, list(range(100)), 5, 0)]
    SimulatedFleet(FleetConfig(), scheduler_cls=OwnBlocks).run(arrivals)
    with pytest.raises(ValueError, match=r"scheduler_cls=OwnBlocks: its block_manager.*use prefill_replicas=0"):
        SimulatedFleet(FleetConfig(prefill_replicas=1), scheduler_cls=OwnBlocks).run(arrivals)


def test_a_step_that_was_not_begun_cannot_end():
    with pytest.raises(RuntimeError, match="no step under way; call start_step first"):
        SimulatedFleet().replicas[0].finish_step()


def test_one_link_sends_one_request_at_a_time():
    config = FleetConfig(num_replicas=2, prefill_replicas=1, transfer_bytes_per_s=1e9, transfer_latency_s=0.0)
    report = SimulatedFleet(config, cost=SMALL).run(
        [Arrival(0.0, list(range(i * 1000, i * 1000 + 320)), 2, i) for i in range(2)])
    first, second = sorted(r.end for r in report.log)
    assert second - first >= 320 * SMALL.kv_bytes / 1e9 * 0.9


def test_poisson_arrivals_have_the_rate_and_the_spread_of_one():
    times = np.array([a.time for a in Traffic(rate=50, num_conversations=20_000, system_tokens=0, prompt_tokens=1)])
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03) and gaps.std() == pytest.approx(1 / 50, rel=0.05)


def test_bursts_keep_the_mean_rate_and_crowd_into_their_share():
    traffic = Traffic(rate=50, num_conversations=20_000, burst=8, burst_share=0.25, burst_period=4, prompt_tokens=1,
                      system_tokens=0)
    times = np.array([a.time for a in traffic])
    assert len(times) / times[-1] == pytest.approx(50, rel=0.04)
    inside = np.mean(times % 4 < 1)
    assert inside == pytest.approx(8 * 0.25 / (8 * 0.25 + 0.75), rel=0.03)
    assert np.all(np.diff(times) >= 0)


def test_lengths_have_the_means_that_were_asked_for():
    arrivals = list(Traffic(rate=1, num_conversations=5000, system_tokens=100, prompt_tokens=300, output_tokens=80))
    assert np.mean([len(a.prompt_token_ids) - 100 for a in arrivals]) == pytest.approx(300, rel=0.05)
    assert np.mean([a.max_tokens for a in arrivals]) == pytest.approx(80, rel=0.05)


def test_a_trace_file_shares_what_its_hash_ids_share(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [7, 8]},
             {"timestamp": 500, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]},
             {"timestamp": 900, "input_length": 40, "output_length": 0}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    a, b, c = TraceFile(path, speed=2)
    assert (a.time, b.time, c.time) == (0, 0.25, 0.45) and [len(x.prompt_token_ids) for x in (a, b, c)] == [700, 600, 40]
    assert a.prompt_token_ids[:512] == b.prompt_token_ids[:512]
    assert not {*a.prompt_token_ids[512:]} & {*b.prompt_token_ids[512:]}
    assert c.max_tokens == 1
    report = SimulatedFleet(FleetConfig(num_replicas=1)).run(TraceFile(path))
    assert report.requests["hit_tokens"].sum() == 512 and len(list(TraceFile(path, limit=2))) == 2


@pytest.mark.parametrize("line, text", [("{", "line 2: JSONDecodeError"), ('{"timestamp": 5}', "line 2: KeyError"),
                                        ("[1]", "line 2: TypeError"),
                                        ('{"timestamp": 1, "input_length": 3, "output_length": 1}', "timestamp in line 2=1")])
def test_a_bad_line_is_named(tmp_path, line, text):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 9, "input_length": 3, "output_length": 1}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        list(TraceFile(path))
    assert text in str(error.value)


@pytest.mark.parametrize("settings, text", [(dict(num_replicas=0), "num_replicas=0"),
                                            (dict(num_replicas=2, prefill_replicas=2), "prefill_replicas=2"),
                                            (dict(router="x"), "policy='x'")])
def test_bad_knobs_are_named(settings, text):
    with pytest.raises(ValueError) as error:
        SimulatedFleet(FleetConfig(**settings))
    assert text in str(error.value)


def test_gaps_are_all_counted_and_their_percentiles_are_right_to_four_per_cent():
    report = SimulatedFleet(FleetConfig(num_replicas=1), cost=SMALL).run([Arrival(0.0, list(range(32)), 101, 0)])
    assert sum(report._gaps) == 100
    exact = [SMALL.seconds(1, 33 + i, 0) for i in range(100)]
    assert report.itl(50) == pytest.approx(np.median(exact), rel=0.04)
    assert math.isnan(SimulatedFleet(FleetConfig(), cost=SMALL).run([]).itl(50))


def test_a_step_longer_than_an_interval_leaves_no_gap():
    line = Timeline(1, width=0.1)
    line.add(0, 0.05, 0.4, running=3, waiting=1, hit_tokens=0, prompt_tokens=7, decode_tokens=2, preemptions=0)
    assert np.allclose(line.of("busy"), [[0.5, 1, 1, 1, 0.5]]) and np.allclose(line.of("running"), [[1.5, 3, 3, 3, 1.5]])
    assert np.allclose(line.of("waiting"), [[0.5, 1, 1, 1, 0.5]]) and line.of("prompt_tokens").tolist() == [[7, 0, 0, 0, 0]]


def test_a_long_run_keeps_its_intervals_and_loses_nothing():
    report = SimulatedFleet(FleetConfig(num_replicas=2), cost=SMALL).run(replace(CHATS, rate=2))
    line = report.timeline
    assert line.num_intervals <= MAX_INTERVALS and line.width * line.num_intervals >= report.seconds * 0.9
    assert line.of("decode_tokens").sum() + line.of("prompt_tokens").sum() > report.requests["output_tokens"].sum()
    assert line.of("hit_tokens").sum() == report.requests["hit_tokens"].sum()
    assert np.array(line.sums["busy"]).sum() == pytest.approx(sum(report.busy_s))


@pytest.mark.unmeasured
@pytest.mark.slow
def test_ten_thousand_requests_on_64_replicas_take_seconds_and_bounded_memory():
    """The tenth part of what the README states; linear in the requests."""
    code = ("import re, time; from nanovllm.fleet.simulated_fleet import SimulatedFleet, FleetConfig\n"
            "from nanovllm.fleet.arrivals import Traffic\n"
            "r = SimulatedFleet(FleetConfig(num_replicas=64)).run(Traffic(rate=1600, num_conversations=10_000))\n"
            "print(r.num_ended, time.process_time(), \n"
            "      int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status', encoding='utf-8').read())[1]) / 1e3)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=300, encoding="utf-8")
    ended, seconds, megabytes = map(float, ran.stdout.split())
    assert ended == 10_000 and seconds < 30 and megabytes < 400


def test_simulation_needs_no_torch():
    code = "import sys, nanovllm.fleet.simulated_fleet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
