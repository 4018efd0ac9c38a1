"""What a load test measured: latencies in percentiles, throughput, goodput, and what failed."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from benchmarks.load_client import Outcome
from nanovllm.utils.checks import check

PERCENTILES = (50, 90, 99)
METRICS = {"ttft": "time to first token", "tpot": "time per output token after the first", "itl": "inter-token latency",
           "e2el": "end-to-end latency"}
LATE_MS = 20.0  # a generator that sends its requests later than this in 1 of 100 cases says so


def parse_goodput(limits: Sequence[str]) -> dict[str, float]:
    """{"ttft": 200.0, "itl": 50.0} from ["ttft:200", "itl:50"], milliseconds. Raises ValueError for another form."""
    parsed: dict[str, float] = {}
    for limit in limits:
        name, _, value = limit.partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        check(name in METRICS, "goodput", limit, f"one of {', '.join(METRICS)}, a colon and milliseconds", "write ttft:200")
        check(0 < milliseconds < math.inf, "goodput", limit, "above 0 milliseconds", f"write {name}:200")
        check(name not in parsed, "goodput", limit, f"one limit for {name}", "leave the other out")
        parsed[name] = milliseconds
    return parsed


class LoadReport:
    """Figures of a load test.

    outcomes: of every request that was sent, in order of arrival. limits: {name in METRICS: milliseconds} that a request must
    keep to count for goodput. Its `itl` is its longest gap: a reader notices that one. Requests that failed are no part of
    the latencies; they count as sent, and never as good.
    """

    def __init__(self, outcomes: Sequence[Outcome], limits: Mapping[str, float] | None = None):
        self.outcomes = list(outcomes)
        self.limits = dict(limits or {})
        self.completed = [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def errors(self) -> Counter[str]:
        """How many requests failed, by reason."""
        return Counter(outcome.error for outcome in self.outcomes if outcome.error is not None)

    @property
    def seconds(self) -> float:
        """From the first planned arrival to the last end."""
        if not self.outcomes:
            return 0.0
        return max(o.end for o in self.outcomes) - min(o.arrival for o in self.outcomes)

    @property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Of the requests that ended well, as `FleetReport.requests` names them: arrival, ttft, latency; in seconds."""
        return {name: np.array([getattr(o, name) for o in self.completed]) for name in ("arrival", "ttft", "latency")}

    def milliseconds(self, metric: str) -> NDArray[np.float64]:
        """All values of a metric in METRICS: one per request, of "itl" one per gap."""
        if metric == "itl":
            return np.array([gap for o in self.completed for gap in o.gaps]) * 1e3
        values = np.array([getattr(o, {"e2el": "latency"}.get(metric, metric)) for o in self.completed]) * 1e3
        return np.asarray(values[~np.isnan(values)])

    @property
    def num_good(self) -> int:
        """Requests that kept every limit."""
        def value(o: Outcome, metric: str) -> float:
            return {"ttft": o.ttft, "tpot": o.tpot, "itl": max(o.gaps, default=0.0), "e2el": o.latency}[metric] * 1e3
        # An answer of one token has no time per output token, so it cannot be over the limit.
        return sum(all(not value(o, metric) > limit for metric, limit in self.limits.items()) for o in self.completed)

    @property
    def most_in_flight(self) -> int:
        """The largest number of requests that were under way at once."""
        events = sorted([(o.sent, 1) for o in self.outcomes] + [(o.end, -1) for o in self.outcomes])
        return int(np.cumsum([step for _, step in events]).max(initial=0))

    def figures(self) -> dict[str, float]:
        """Every figure by name and unit; a percentile of nothing is left out."""
        per_second = 1 / self.seconds if self.seconds else 0.0
        prompt, output = (sum(getattr(o, f"{kind}_tokens") for o in self.completed) for kind in ("prompt", "output"))
        last = max((o.arrival for o in self.outcomes), default=0.0)
        found: dict[str, float] = {
            "requests": len(self.outcomes), "failed": len(self.outcomes) - len(self.completed), "seconds": self.seconds,
            "offered req/s": (len(self.outcomes) - 1) / last if last else math.nan,
            "completed req/s": len(self.completed) * per_second}
        if self.limits:
            found |= {"goodput req/s": self.num_good * per_second,
                      "good %": 100 * self.num_good / len(self.outcomes) if self.outcomes else math.nan}
        found |= {"most in flight": self.most_in_flight, "prompt tokens": prompt, "output tokens": output,
                  "prompt tokens cached %": 100 * sum(o.cached_tokens for o in self.completed) / prompt if prompt else math.nan,
                  "output tok/s": output * per_second, "total tok/s": (prompt + output) * per_second}
        for metric in METRICS:
            values = self.milliseconds(metric)
            if len(values):
                found[f"{metric} mean ms"] = float(values.mean())
                found |= {f"{metric} p{p} ms": float(np.percentile(values, p)) for p in PERCENTILES}
        if self.outcomes:
            found["sent late p99 ms"] = float(np.percentile([1e3 * (o.sent - o.arrival) for o in self.outcomes], 99))
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def rows(self) -> list[dict[str, object]]:
        """One per request, for a file."""
        return [asdict(outcome) for outcome in self.outcomes]

    def __str__(self) -> str:
        found = self.figures()
        lines = [f"{name:>24}  {found[name]:,.{1 if found[name] % 1 else 0}f}" for name in found if " ms" not in name]
        lines.append(f"\n{'milliseconds':>40} {'mean':>9}" + "".join(f"{f'p{p}':>9}" for p in PERCENTILES))
        for metric, text in METRICS.items():
            if f"{metric} mean ms" in found:
                cells = [found[f"{metric} mean ms"], *(found[f"{metric} p{p} ms"] for p in PERCENTILES)]
                lines.append(f"{f'{text} ({metric})':>40} " + "".join(f"{cell:>9,.1f}" for cell in cells))
        lines += [f"\n{count} failed: {reason}" for reason, count in self.errors.most_common(8)]
        if found.get("sent late p99 ms", 0) > LATE_MS:
            lines.append(f"\nThis program sent its requests late ({found['sent late p99 ms']:.0f} ms in 1 of 100 cases), which "
                         "is part of the latencies: lower the rate, or run it on another machine than the server.")
        return "\n".join(lines)
