"""What a sequence knows of its drafts (speculative decoding, see `drafts`). Imports no torch."""


class SequenceDrafts:
    """The part of a `Sequence` that concerns drafts. Without a drafter it stays as it is made.

    Drafts count nowhere until the model has drawn the same: not in the sequence's tokens, nor in its computed ones.

    draft_token_ids: guesses at the tokens that come next, which the next step checks. With drafts_on_device the guesses
        are not known yet, only how many there may be.
    num_pending_drafts: how many of them the step in flight checks, so that so many more tokens than the pending one may come.
    drafts_on_device: the next step runs from the device's own rows, which know where the sequence stands (see `draft_graphs`).
    num_drafted_tokens, num_accepted_tokens: how many guesses were checked so far, and how many of them were right.
    """

    __slots__ = ("draft_token_ids", "num_pending_drafts", "drafts_on_device", "num_drafted_tokens", "num_accepted_tokens")

    def __init__(self) -> None:
        self.draft_token_ids: list[int] = []
        self.num_pending_drafts = 0
        self.drafts_on_device = False
        self.num_drafted_tokens = 0
        self.num_accepted_tokens = 0

    @property
    def waits_for_drafts(self) -> bool:
        """Whether it cannot run before a step in flight has ended: only the outcome of its drafts says where it goes on.

        The device's rows know the outcome in time, so they need not wait.
        """
        return bool(self.num_pending_drafts or self.draft_token_ids) and not self.drafts_on_device

    def drop_drafts(self) -> None:
        """Those of the next step and of the one in flight, which will bring nothing."""
        self.draft_token_ids, self.num_pending_drafts = [], 0

    def leave_device_rows(self) -> None:
        """Its blocks are gone, and with them what the device's rows know of it."""
        self.drop_drafts()
        self.drafts_on_device = False
