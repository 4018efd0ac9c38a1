"""What the engine asks of the object that runs its batches: a model on one device, or one that is split over several."""

from typing import Any, Protocol

from nanovllm.engine.scheduled_batch import ScheduledBatch


class Runner(Protocol):
    """Runs batches and draws tokens. It never decides what runs: that stands in the ScheduledBatch it is given.

    num_blocks: blocks of its KV cache. failure: why it can run nothing any more; None while all is well.
    """

    num_blocks: int

    @property
    def failure(self) -> str | None: ...

    def launch(self, batch: ScheduledBatch) -> Any:
        """Enqueue a step and return at once, with what `collect` takes. Tokens drawn stay where the next step needs them.

        Where `batch.masks_wait`, the forward pass alone: `draw` comes after it, before anything else is launched.
        """

    def draw(self, launched: Any) -> None:
        """Enqueue the draws of a step whose masks had to wait, now that the sequences hold the tokens of the step before."""

    def collect(self, launched: Any) -> list[int]:
        """Wait for a step: what was drawn for each item that samples, in the batch's order: a token at each of its
        `drawn_positions`, so one more than it has drafts.

        Below 0 where none could be drawn, because the row's scores were not finite (see `layers.sampler`).
        Log-probabilities that sequences asked for stand in their `logprobs` afterwards.
        """
        ...

    def reset(self) -> None:
        """Forget the steps in flight, after one that failed: the sequences that run next bring their own tokens."""

    def close(self) -> None:
        """Give all memory back. May be called any number of times."""
