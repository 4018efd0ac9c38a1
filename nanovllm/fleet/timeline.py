"""What each replica did over time, in a fixed number of intervals however long the run is. Imports no torch."""

import numpy as np
from numpy.typing import NDArray

MAX_INTERVALS = 240
AVERAGED = ("running", "waiting")                                               # weighted by time
SUMMED = ("hit_tokens", "prompt_tokens", "decode_tokens", "preemptions")


class Timeline:
    """Sums over intervals of `width` seconds per replica. When a run outgrows them, neighbours are joined and `width`
    doubles, so memory does not grow with the run.

    Owns `busy` (seconds in steps) and a sum for each name in AVERAGED and SUMMED, each [num_replicas][MAX_INTERVALS].
    """

    def __init__(self, num_replicas: int, width: float = 0.001):
        self.width = width
        self.num_intervals = 0
        self.sums: dict[str, list[list[float]]] = {
            name: [[0.0] * MAX_INTERVALS for _ in range(num_replicas)] for name in ("busy", *AVERAGED, *SUMMED)}

    def add(self, replica: int, time: float, duration: float, *, running: int, waiting: int, hit_tokens: int,
            prompt_tokens: int, decode_tokens: int, preemptions: int) -> None:
        """Count a step: its time in every interval that it touches, its tokens where it began."""
        while (last := int((time + duration) / self.width)) >= MAX_INTERVALS:
            self._join()
        place = int(time / self.width)
        self.num_intervals = max(self.num_intervals, last + 1)
        sums = self.sums
        for touched in range(place, last + 1):
            spent = min(time + duration, (touched + 1) * self.width) - max(time, touched * self.width)
            sums["busy"][replica][touched] += spent
            sums["running"][replica][touched] += running * spent
            if waiting:
                sums["waiting"][replica][touched] += waiting * spent
        sums["decode_tokens"][replica][place] += decode_tokens
        if prompt_tokens:
            sums["prompt_tokens"][replica][place] += prompt_tokens
        if hit_tokens:
            sums["hit_tokens"][replica][place] += hit_tokens
        if preemptions:
            sums["preemptions"][replica][place] += preemptions

    def of(self, name: str) -> NDArray[np.float64]:
        """[num_replicas, num_intervals]: the mean number for AVERAGED, the share of time for "busy", else the sum."""
        values = np.array(self.sums[name])[:, :self.num_intervals]
        return np.asarray(values / self.width if name in (*AVERAGED, "busy") else values)

    def _join(self) -> None:
        self.width *= 2
        self.num_intervals = (self.num_intervals + 1) // 2
        for rows in self.sums.values():
            for row in rows:
                row[:] = [row[i] + row[i + 1] for i in range(0, MAX_INTERVALS, 2)] + [0.0] * (MAX_INTERVALS // 2)
