"""A simulated fleet's log as a file for Perfetto, and the command that writes it."""

import json
import subprocess
import sys
from collections import Counter

from nanovllm.fleet.arrivals import Traffic
from nanovllm.fleet.command import simulate
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.simulated_fleet import SimulatedFleet

CHATS = Traffic(rate=30, num_conversations=20, turns=2, think_seconds=0.2)
FIRST = 10  # process id of the first replica


def events_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]


def test_there_is_a_group_per_replica_and_every_decision_with_its_reason(tmp_path):
    report = SimulatedFleet(FleetConfig(num_replicas=3, router="round_robin")).run(CHATS)
    report.to_perfetto(tmp_path / "fleet.json")
    events = events_of(tmp_path / "fleet.json")
    groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(groups.values()) == ["replica 0", "replica 1", "replica 2", "router"]
    decisions = [e for e in events if e["ph"] == "i"]
    assert len(decisions) == len(report.log) == 40 and all(e["args"]["reason"] == "next in turn" for e in decisions)
    for pid in (10, 11, 12):
        spans = [e for e in events if e["ph"] == "X" and e["pid"] == pid]
        ends = [e["ts"] + e["dur"] for e in spans]
        assert all(later["ts"] >= end - 0.01 for later, end in zip(spans[1:], ends)) and spans
    begun, ended = ([e["id"] for e in events if e["ph"] == ph] for ph in "be")
    assert sorted(begun) == sorted(ended) and len(set(begun)) == 40
    times = [e["ts"] for e in events if e["ph"] != "M"]
    assert times == sorted(times) and all(e["ph"] == "M" for e in events[:len(events) - len(times)])


def test_with_roles_the_prompt_runs_at_one_replica_and_the_answer_at_another(tmp_path):
    report = SimulatedFleet(FleetConfig(num_replicas=3, prefill_replicas=1)).run(CHATS)
    report.to_perfetto(tmp_path / "fleet.json")
    events = events_of(tmp_path / "fleet.json")
    groups = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert groups == {"router", "replica 0 (prefill)", "replica 1 (decode)", "replica 2 (decode)"}
    places = {(e["pid"], e["name"].split(": ")[1]) for e in events if e["ph"] == "b"}
    assert places == {(FIRST, "to the first token"), (FIRST + 1, "decode"), (FIRST + 2, "decode")}
    steps = Counter((e["pid"], e["name"]) for e in events if e["ph"] == "X")
    assert set(steps) >= {(FIRST, "prefill"), (FIRST + 1, "decode")} and (FIRST + 1, "prefill") not in steps


def test_the_command_prints_the_report_and_writes_the_file(tmp_path, capsys):
    numbers = dict(turns=1, system_prompts=2, system_tokens=64, prompt_tokens=32, output_tokens=8, burst=1.0, seed=0)
    file = tmp_path / "run.json"
    simulate(rate=20.0, requests=12, replicas=2, prefill_replicas=0, router="prefix_aware", max_imbalance=4, max_num_seqs=64,
             max_num_batched_tokens=512, perfetto=file, **numbers)
    said = capsys.readouterr().out
    assert "12 requests" in said and f"{file}: the first 12 requests" in said
    assert sum(e["ph"] == "i" for e in events_of(file)) == 12
    missing = subprocess.run([sys.executable, "-m", "nanovllm", "simulate", "--trace", str(tmp_path / "none")],
                             capture_output=True, encoding="utf-8")
    assert missing.returncode == 2 and "must be a file" in missing.stderr and "Traceback" not in missing.stderr
