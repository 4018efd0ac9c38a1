"""A step between its launch and its end. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from nanovllm.engine.scheduled_batch import ScheduledBatch


@dataclass(slots=True)
class StepInFlight:
    """timestamps: when its phases began so far; see `Step`. launched: what the runner's `collect` takes."""

    batch: ScheduledBatch
    launched: Any
    timestamps: list[float]

    def record_times(self) -> None:
        """Record when its sequences first ran and when their tokens arrived."""
        for item in self.batch.items:
            seq = item.seq
            if seq.scheduled_at is None:
                seq.scheduled_at, seq.num_hit_tokens = self.timestamps[0], seq.num_cached_tokens
            if item.samples:  # of several tokens drawn together, all were there at once
                seq.token_times += [self.timestamps[-1]] * (seq.num_output_tokens - len(seq.token_times))
