"""What the engine tells those who listen to it. Imports no torch."""

from dataclasses import dataclass
from typing import Protocol

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence


@dataclass(slots=True)
class Step:
    """A step that has ended.

    number: how many steps ended before it. batch: what ran. token_ids: what was drawn for each item that samples, in order:
        one token, below 0 where none could be, and one more for each of its drafts, of which those behind a wrong one came
        to nothing. finished: the sequences that these tokens ended.
    timestamps: by `time.perf_counter`, when it began to schedule, to launch, to collect and to update, and when it ended.
    """

    number: int
    batch: ScheduledBatch
    token_ids: list[int]
    finished: list[Sequence]
    timestamps: list[float]


class Listener(Protocol):
    """Is told what happens in an engine, from `LLMEngine.attach` until `LLMEngine.detach`.

    one_step_at_a_time: the engine does not look ahead while it listens, so that queues and block tables,
        too, are those after the step that has just ended. Otherwise they may already include the one in flight.

    It is called inside the engine's calls, in the thread that makes them, by one thread at a time: it should be quick, and
    what it raises comes out of that call.
    """

    one_step_at_a_time: bool

    def joined(self, seq: Sequence) -> None:
        """A request was queued, or was there already when this began to listen."""

    def ended(self, seq: Sequence) -> None:
        """A request was ended between two steps. Those that end in a step stand in its `finished`."""

    def stepped(self, step: Step) -> None:
        """A step has ended."""
