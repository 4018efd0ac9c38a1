"""Speculative decoding: guesses at the tokens to come, which one step of the model checks all at once. Imports no torch.

A decode step reads every weight of the model to draw one token, and would cost hardly more if it drew five. So somebody
cheap, the *drafter*, guesses the next few tokens; the step computes them as if they had been drawn, draws a token at each
of their positions, and keeps guesses for as long as each equals what was drawn in its place. What comes after the first
wrong one was computed on a wrong prefix and is dropped (Leviathan et al. 2023; Chen et al. 2023).

Their rule accepts a guess at random, so that the output has the model's distribution. Ours compares, and says more: the
noise of a draw is a pure function of the request's seed and the position (`layers.noise`), so the token drawn at a position
is the one that would have been drawn there without drafts. The text is the same, token for token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as ListLike
from typing import Any

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduled_batch import ScheduledSequence
from nanovllm.engine.sequence import Sequence, SequenceStatus


class Drafter(ABC):
    """Proposes tokens for sequences that decode. Whatever it proposes, the text stays the same: it only decides how fast.

    It may keep notes about sequences by their `seq_id`, and must not change them. `LLM(drafter=...)` takes one of your own.

    cost: what one guess costs to make, as a share of a step without drafts. A guess is made only if it is likelier to save a
        step than that and the cost of checking it.
    """

    cost: float = 0.0

    @abstractmethod
    def propose(self, sequences: list[Sequence], limits: list[int]) -> ListLike[list[int]]:
        """For each sequence the tokens that may follow its last one: at most as many as its limit, or none at all."""

    def on_device(self) -> Any:
        """A form of it that proposes without the host (see `device_drafters.DeviceDrafter`); None where there is none."""
        return None

    def likely(self, seq: Sequence) -> bool:
        """Whether it would find any draft for the sequence, by a quick look: only then does the device set out to draft."""
        return True

    def catch_up(self, sequences: list[Sequence]) -> None:  # noqa: B027
        """The device's rows are about to draft for these sequences, and have not seen them before."""

    def overwrite(self, blocks: list[int]) -> None:  # noqa: B027
        """They are about to write to these blocks of the cache."""

    def follow(self, seq: Sequence) -> None:  # noqa: B027
        """They have drafted for it, and the outcome stands in its tokens."""

    def forget(self, seq_id: int) -> None:  # noqa: B027 (nothing to do, unless notes were kept)
        """The sequence has ended."""

    def close(self) -> None:  # noqa: B027
        """Give all memory back."""


def num_accepted(drafts: list[int], drawn: list[int]) -> int:
    """How many drafts to keep: those before the first one that differs from the token drawn in its place."""
    for i, (guess, token) in enumerate(zip(drafts, drawn)):
        if guess != token:
            return i
    return min(len(drafts), len(drawn))


def kept_tokens(item: ScheduledSequence, drawn: list[int]) -> list[int]:
    """Of the tokens drawn for an item, those that its sequence takes: the drafts that were right, and the token behind them."""
    item.seq.num_pending_drafts = 0
    return drawn[:num_accepted(item.draft_token_ids, drawn) + 1] if item.draft_token_ids else drawn


def roll_back_refused(item: ScheduledSequence, num_kept: int, manager: BlockManager) -> None:
    """Once a step's tokens are appended, num_kept of them drafts: count what those left in the cache, and nothing more.

    The slots of refused drafts hold keys and values that no position counts as computed; the next step writes over them.
    Blocks that only they needed go back, and no block is made findable before all its tokens are true.
    """
    seq, item.num_accepted = item.seq, num_kept
    seq.draft_token_ids = []
    seq.num_drafted_tokens += item.num_drafts
    seq.num_accepted_tokens += num_kept
    if seq.status is SequenceStatus.RUNNING:  # not preempted meanwhile
        before = seq.num_computed_tokens
        seq.num_computed_tokens = before + num_kept
        if seq.error is None:
            manager.commit(seq, before)
        if not seq.drafts_on_device:  # a step may be under way that goes on from here
            manager.trim(seq, seq.num_computed_tokens)
