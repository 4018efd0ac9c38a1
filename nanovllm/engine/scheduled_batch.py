"""What the scheduler decided for one step, handed to the runner and to listeners."""

from dataclasses import dataclass, field

from nanovllm.engine.sequence import Sequence
from nanovllm.engine.token_matcher import TokenBitmasks


@dataclass
class ScheduledSequence:
    """The part of one sequence that runs in this step: tokens start .. start + num_tokens - 1.

    draft_token_ids: the guesses among them, which are the last ones (see `drafts`). num_accepted: how many were right; None
        until `Scheduler.update` has compared them, and for a sequence that ended meanwhile.
    """

    seq: Sequence
    start: int
    num_tokens: int
    reason: str
    samples: bool = field(init=False)    # reaches the last token, so the next can be drawn; unfinished chunks do not
    is_decode: bool = field(init=False)  # feeds back one generated token, as against (re)computing a prompt
    draft_token_ids: list[int] = field(init=False)
    num_reserved: int = field(init=False)  # drafts that there was room for; the device may make fewer
    num_accepted: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        left = self.start + self.num_tokens - len(self.seq.token_ids) - self.seq.num_pending_tokens
        self.samples = left >= 0
        self.draft_token_ids = self.seq.draft_token_ids[:max(0, left)]
        self.num_reserved = len(self.draft_token_ids)
        self.is_decode = self.samples and self.num_tokens == 1 + self.num_drafts and self.start >= self.seq.num_prompt_tokens

    def advance(self) -> None:
        """Count its tokens as computed, and the one it draws as pending, while the step is in flight. Drafts count later."""
        seq = self.seq
        if seq.drafts_on_device:  # when it was scheduled, the step before it had not said where it begins
            self.start = seq.num_computed_tokens
        seq.num_computed_tokens = self.start + self.num_tokens - self.num_drafts
        seq.num_pending_tokens, seq.num_pending_drafts = int(self.samples), self.num_drafts

    @property
    def num_drafts(self) -> int:
        return len(self.draft_token_ids)

    @property
    def drawn_positions(self) -> range:
        """The positions for which this step draws a token: none, one, or with drafts one more than there are drafts."""
        end = self.start + self.num_tokens
        return range(end - self.num_drafts, end + 1) if self.samples else range(0)


@dataclass
class ScheduledBatch:
    """What one step runs. Pure data: the model runner turns it into tensors, the trace into a record.

    items: sequences with one token first (the decode kernel takes those), then the longer prompt chunks.
    masks_wait: some sequence's next mask needs the token that the step in flight draws for it. The runner then enqueues the
        forward pass, which takes that token from the device, and `Runner.draw` enqueues the draws once the host knows it.
    bitmasks: what masked rows may draw, where the runner cannot ask the matchers itself: in another process.
    """

    items: list[ScheduledSequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    left_waiting: dict[int, str] = field(default_factory=dict)  # seq_id -> why it was not admitted
    preemption_reasons: dict[int, str] = field(default_factory=dict)
    is_advanced: bool = False  # see Scheduler.advance
    masks_wait: bool = False
    bitmasks: TokenBitmasks | None = None

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)

    @property
    def draws(self) -> list[tuple[Sequence, int]]:
        """Whose token is drawn, and for which position: the rows of a step's logits, in order."""
        return [(item.seq, position) for item in self.items for position in item.drawn_positions]

    @property
    def num_decodes(self) -> int:
        return sum(item.num_tokens == 1 for item in self.items)
