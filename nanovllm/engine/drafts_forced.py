"""What a grammar leaves no choice about, several tokens in one step. Imports no torch.

Of an answer by a JSON schema a tenth to two fifths is forced: the properties' names and the marks around them. Such tokens are
drafts that nobody need guess, and that the masks make right whatever the model says, so a step checks them along with the
token before them. SGLang does so too, and calls it jump-forward decoding (Zheng et al. 2024). There a forced run is cut into
tokens anew; here it is cut as the masks have it, so that the text is the one that comes without.
"""

from nanovllm.engine.draft_records import DraftCounts
from nanovllm.engine.drafts_room import decodes, reserve
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.token_matcher import forced_tokens
from nanovllm.utils.interrupts import uninterrupted

MOST = 16  # forced tokens of a sequence in one step


class ForcedTokens:
    """Fills in `draft_token_ids` before a step, in an engine without a drafter that runs one step at a time.

    What a sequence's next token forces is known only once that token is, so an engine that looks ahead would have to stop
    looking. counts: forced tokens that a step took along, and those that were right, which is all of them.
    """

    is_wanted, num_failures = False, 0

    def __init__(self, scheduler: Scheduler):
        self.counts, self._scheduler = DraftCounts(), scheduler
        self._drafting: list[Sequence] = []

    def __repr__(self) -> str:
        return f"ForcedTokens({self.counts.accepted} of {self.counts.drafted} right)"

    def propose(self) -> None:
        """Give running sequences the tokens that their grammars force, as far as there is room."""
        for seq in self._drafting:
            if not seq.num_pending_tokens:  # they are not under way: left over from a step that failed before its launch
                seq.draft_token_ids = []
        self._drafting = []
        forced: dict[int, list[int]] = {}
        wanted: list[tuple[Sequence, int]] = []
        for seq in self._scheduler.running:
            if seq.matcher is not None and decodes(seq) and (tokens := forced_tokens(seq.matcher, self._most(seq))):
                forced[seq.seq_id] = tokens
                wanted.append((seq, len(tokens)))
        if wanted:
            with uninterrupted():
                # Graphs and memory have room for so many draws.
                limits = reserve(self._scheduler, wanted, self._scheduler.max_num_seqs - len(self._scheduler.running))
                for seq, _ in wanted:
                    if limit := limits.get(seq.seq_id):
                        seq.draft_token_ids = forced[seq.seq_id][:limit]
                        self._drafting.append(seq)

    def learn(self, batch: ScheduledBatch) -> None:
        """Count what became of them."""
        for item in batch.items:
            if item.num_accepted is not None:
                self.counts.add(item.num_drafts, item.num_accepted)

    def forget(self, seq_id: int) -> None:
        """A sequence has ended, of which nothing was kept."""

    def close(self) -> None:
        """There is nothing to give back."""

    def _most(self, seq: Sequence) -> int:
        """The last token of a request is never fed back, and a draft behind it would be for nothing."""
        room = self._scheduler.max_model_len - len(seq) - 1
        return max(0, min(MOST, seq.sampling_params.max_tokens - seq.num_output_tokens - 1, room))
