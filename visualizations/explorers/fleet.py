"""FleetExplorer: where every request of a simulated fleet went, why, and what the replicas were doing then."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nanovllm.fleet.fleet_report import FleetReport
from nanovllm.utils.checks import check
from visualizations.explorers.base import Explorer
from visualizations.figures.fleet import plot_fleet


class FleetExplorer(Explorer):
    """Replicas against time, and every routing decision with its reason; two runs lie one below the other.

        FleetExplorer(report)
        FleetExplorer({"round robin": a, "prefix aware": b})    # two runs that differ in one knob

    runs: reports of `SimulatedFleet.run` with the same arrivals. The player goes from request to request, in order of
    arrival; as many as the reports have logged. Raises ValueError for no report, or one without a logged request.
    """

    module = "fleet.js"

    def __init__(self, runs: FleetReport | Mapping[str, FleetReport], *, step: int = 0,
                 label: str = "Where each request went, and why"):
        self.runs = {"": runs} if isinstance(runs, FleetReport) else dict(runs)
        check(bool(self.runs), "runs", dict(self.runs), "at least one report", "run a SimulatedFleet")
        for name, report in self.runs.items():
            check(bool(report.log), f"logged requests of {name or 'the run'}", 0, "at least one",
                  "run the fleet with max_logged above 0")
        # The same request stands at the same place in every run, although a conversation's later turns may change order.
        first = next(iter(self.runs.values()))
        keys = [(r.conversation, r.turn) for r in first.log]
        seconds = max(report.timeline.width * report.timeline.num_intervals for report in self.runs.values())
        super().__init__({"runs": [_packed(name, report, keys) for name, report in self.runs.items()], "seconds": seconds},
                         label=label, step=step)

    def summary(self) -> str:
        runs = "; ".join(f"{name}: {report!r}".removeprefix(": ") for name, report in self.runs.items())
        return f"{self.label}: {runs}. Run this cell in JupyterLab to go through the requests."

    def figure(self) -> Figure:
        return plot_fleet({name or self.label: report for name, report in self.runs.items()})


def _packed(name: str, report: FleetReport, keys: list[tuple[int, int]]) -> dict[str, Any]:
    line = report.timeline
    prompts, hits = line.of("prompt_tokens"), line.of("hit_tokens")
    found = np.divide(hits, prompts + hits, out=np.zeros_like(hits), where=prompts + hits > 0)
    rows = {"unfinished": line.of("running") + line.of("waiting"), "waiting": line.of("waiting"), "found cached": found,
            "busy": line.of("busy")}
    logged = {(r.conversation, r.turn): r for r in report.log}
    requests = [r and [r.conversation, round(r.arrival, 5), r.num_prompt_tokens, r.replica, r.decode_replica, r.matched_blocks,
                       r.hit_tokens, _rounded(r.first_token), _rounded(r.end), r.reason, r.loads]
                for r in map(logged.get, keys)]
    return {"name": name, "width": line.width, "prefill": report.config.prefill_replicas,
            "block": report.cost.block_size, "rows": {key: np.round(values, 3).tolist() for key, values in rows.items()},
            "requests": requests, "figures": [[key, round(value, 1)] for key, value in report.figures().items()]}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 5)
