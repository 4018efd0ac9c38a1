"""What a simulated fleet did: latencies, throughput, and how busy each replica was. Imports no torch."""

import json
import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.arrivals import Arrival
from nanovllm.fleet.cost_model import CostModel
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.fleet_log import LoggedStep, Routed
from nanovllm.fleet.fleet_perfetto import fleet_events
from nanovllm.fleet.router import Choice
from nanovllm.fleet.simulated_replica import SimulatedReplica
from nanovllm.fleet.timeline import Timeline

SHORTEST_GAP, GAPS_PER_DECADE, NUM_GAPS = 1e-5, 60, 480  # of the histogram: 10 us to 1000 s, bins 3.9 % wide
COLUMNS = ("arrival", "ttft", "itl", "latency", "prompt_tokens", "hit_tokens", "output_tokens", "replica", "preemptions")


class FleetReport:
    """Figures of a whole run, and its first `max_logged` requests and steps one by one.

    Owns nine numbers per request that ended (`requests`), a histogram of all gaps between tokens, and the `timeline`.
    seconds: from the first arrival to the last token. refused: requests that no replica could ever serve.
    """

    def __init__(self, config: FleetConfig, cost: CostModel, max_logged: int):
        self.config, self.cost = config, cost
        self.log: list[Routed] = []
        self.steps: list[LoggedStep] = []
        self.timeline = Timeline(config.num_replicas)
        self.refused = 0
        self.num_steps = 0
        self.busy_s: list[float] = []
        self.preemptions: list[int] = []
        self._max_logged = max_logged
        self._columns = {name: array("d") for name in COLUMNS}
        self._gaps = [0] * NUM_GAPS

    # ---- what the fleet notes

    def routed(self, seq_id: int, now: float, arrival: Arrival, choice: Choice[int], loads: Mapping[int, int]) -> Routed:
        """Count a request that the router sent to a replica."""
        routed = Routed(seq_id, arrival.conversation, arrival.turn, now, len(arrival.prompt_token_ids), choice.replica,
                        choice.num_matched_blocks, choice.reason)
        if len(self.log) < self._max_logged:
            routed.loads = list(loads.values())
            self.log.append(routed)
        return routed

    def stepped(self, replica: SimulatedReplica, batch: ScheduledBatch) -> None:
        """Take in a step that has just ended."""
        decode_tokens = prompt_tokens = hit_tokens = same_gap = 0
        usual = -1.0
        for item in batch.items:
            if item.num_tokens == 1:
                decode_tokens += 1
            else:
                prompt_tokens += item.num_tokens
            times = item.seq.token_times
            if item.samples and len(times) > 1:
                gap = times[-1] - times[-2]
                if gap == usual:  # nearly all sequences of a step got their last token together
                    same_gap += 1
                else:
                    self._count_gaps(usual, same_gap)
                    usual, same_gap = gap, 1
        self._count_gaps(usual, same_gap)
        for seq in batch.admitted:
            hit_tokens += seq.num_cached_tokens
        running, waiting = len(replica.scheduler.running), len(replica.scheduler.waiting)
        duration = replica.ends - replica.began
        self.timeline.add(replica.index, replica.began, duration, running=running, waiting=waiting, hit_tokens=hit_tokens,
                          prompt_tokens=prompt_tokens, decode_tokens=decode_tokens, preemptions=len(batch.preempted))
        self.num_steps += 1
        if len(self.steps) < self._max_logged:
            self.steps.append(LoggedStep(replica.index, replica.began, duration, prompt_tokens, decode_tokens, running,
                                         waiting))

    def ended(self, routed: Routed, now: float, seq: Sequence) -> None:
        """Take in a request that has ended."""
        times, first = seq.token_times, routed.first_token
        assert first is not None  # for the type checker: a request ends after its first token, which the fleet notes
        routed.end, routed.output_tokens = now, len(times)
        row = (routed.arrival, first - routed.arrival, (now - first) / max(1, len(times) - 1), now - routed.arrival,
               routed.num_prompt_tokens, routed.hit_tokens, len(times), routed.replica, seq.num_preemptions)
        for column, value in zip(self._columns.values(), row):
            column.append(value)

    def close(self, busy_s: list[float], preemptions: list[int]) -> None:
        self.busy_s, self.preemptions = busy_s, preemptions

    def _count_gaps(self, gap: float, count: int) -> None:
        if count:
            place = int(math.log10(max(gap, SHORTEST_GAP) / SHORTEST_GAP) * GAPS_PER_DECADE)
            self._gaps[min(place, NUM_GAPS - 1)] += count

    # ---- what one asks

    @property
    def requests(self) -> dict[str, NDArray[np.float64]]:
        """Columns over the requests that ended, in order of their ends; times in seconds. itl is a request's mean gap."""
        return {name: np.array(column) for name, column in self._columns.items()}

    @property
    def num_ended(self) -> int:
        return len(self._columns["ttft"])

    @property
    def seconds(self) -> float:
        arrival, latency = self.requests["arrival"], self.requests["latency"]
        return float((arrival + latency).max() - arrival.min()) if len(arrival) else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        return float(self.requests["output_tokens"].sum() / self.seconds) if self.seconds else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were found cached."""
        total = self.requests["prompt_tokens"].sum()
        return float(self.requests["hit_tokens"].sum() / total) if total else 0.0

    @property
    def utilisation(self) -> list[float]:
        """Share of the run that each replica spent in steps."""
        return [busy / self.seconds if self.seconds else 0.0 for busy in self.busy_s]

    def ttft(self, percentile: float) -> float:
        """Time to the first token, in seconds, that `percentile` per cent of the requests stayed at or below."""
        return float(np.percentile(self.requests["ttft"], percentile)) if self.num_ended else math.nan

    def itl(self, percentile: float) -> float:
        """The same of all gaps between two tokens of a request, to 4 %."""
        counts = np.cumsum(self._gaps)
        if not counts[-1]:
            return math.nan
        place = int(np.searchsorted(counts, counts[-1] * percentile / 100))
        return float(SHORTEST_GAP * 10 ** ((place + 0.5) / GAPS_PER_DECADE))

    def goodput(self, *, ttft: float = 0.5, itl: float = 0.03) -> float:
        """Requests per second whose first token came within `ttft` seconds and the others `itl` apart, on average."""
        good = (self.requests["ttft"] <= ttft) & (self.requests["itl"] <= itl)
        return float(good.sum() / self.seconds) if self.seconds else 0.0

    def figures(self) -> dict[str, float]:
        """The figures that `str()` prints, by name."""
        return {"requests": self.num_ended, "seconds": self.seconds, "output tok/s": self.output_tokens_per_s,
                "TTFT p50 ms": self.ttft(50) * 1e3, "TTFT p99 ms": self.ttft(99) * 1e3, "ITL p50 ms": self.itl(50) * 1e3,
                "ITL p99 ms": self.itl(99) * 1e3, "goodput req/s": self.goodput(), "hit rate %": 100 * self.hit_rate,
                "utilisation %": 100 * float(np.mean(self.utilisation)), "preemptions": sum(self.preemptions),
                "refused": self.refused}

    def to_perfetto(self, path: str | Path | None = None) -> dict[str, Any]:
        """The logged steps and requests as a JSON object that https://ui.perfetto.dev opens; with `path` written there, too."""
        data = {"displayTimeUnit": "ms", "traceEvents": fleet_events(
            self.config.num_replicas, self.config.prefill_replicas, self.steps, self.log)}
        if path is not None:
            Path(path).write_text(json.dumps(data), encoding="utf-8")
        return data

    def __str__(self) -> str:
        return "\n".join(f"{name:>14}  {value:,.{1 if value % 1 else 0}f}" for name, value in self.figures().items())

    def __repr__(self) -> str:
        return f"FleetReport({self.config.num_replicas} replicas, {self.num_ended} requests in {self.seconds:.1f} s)"
