"""Simulated runs served by the clock, and how long users waited in them."""

from collections.abc import Iterable
from itertools import pairwise

from nanovllm.fleet.simulation import Simulation
from nanovllm.tracing.trace import Trace

from .tables import Table


def serve_by_clock(simulation: Simulation, arrivals: Iterable[tuple[float, int, int]]) -> Trace:
    """Serve requests (second of arrival, prompt tokens, answer tokens), in their order, each from the first step that begins
    after it came. `measure` counts its wait from that second on. Time in which nobody is there is left out."""
    now, arrived = 0.0, simulation.trace.meta.setdefault("arrived", {})
    idle = 0.0
    for second, num_prompt, num_output in arrivals:
        while simulation.has_unfinished and now + idle < second:
            record = simulation.step()
            now += record.duration if record else 0.0
        idle = max(idle, second - now)
        arrived[simulation.add(num_prompt, num_output)] = second - idle
    return simulation.run()


def measure(trace: Trace) -> tuple[float, float, float]:
    """(tokens per second, mean seconds to the first token, longest seconds between two tokens of one answer)."""
    arrived: dict[int, float] = dict(trace.meta.get("arrived", {}))
    drawn: dict[int, list[float]] = {}
    for r in trace:
        for seq_id in (*r.waiting, *(s["seq_id"] for s in r.scheduled)):
            arrived.setdefault(seq_id, r.time)
        for seq_id in r.tokens:
            drawn.setdefault(seq_id, []).append(r.time + r.duration)
    first = [times[0] - arrived[i] for i, times in drawn.items()]
    gaps = [b - a for times in drawn.values() for a, b in pairwise(times)]
    count = sum(map(len, drawn.values()))
    return count / (trace[-1].time + trace[-1].duration), sum(first) / len(first), max(gaps, default=0.0)


def report(trace: Trace) -> str:
    rate, first, gap = measure(trace)
    return (f"{len(trace)} steps, {rate:.0f} tokens/s, first token after {first * 1e3:.0f} ms on average, "
            f"longest gap {gap * 1e3:.0f} ms")


def table(runs: dict[str, Trace]) -> Table:
    """A row for each run: throughput, mean time to the first token, longest gap between two tokens, steps."""
    rows = []
    for name, trace in runs.items():
        rate, first, gap = measure(trace)
        rows.append((name, round(rate), round(first * 1e3), round(gap * 1e3), len(trace)))
    return Table(("", "tokens/s", "mean TTFT (ms)", "longest gap (ms)", "steps"), rows)
