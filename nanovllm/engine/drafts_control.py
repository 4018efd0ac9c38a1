"""Who drafts, and how many tokens: as many as pay, down to none. Imports no torch."""

import time
import warnings
from collections.abc import Callable
from functools import partial

from nanovllm.engine.draft_records import DraftCounts, Record
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.drafts_room import decodes, reserve
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.step_times import StepTimes
from nanovllm.engine.token_matcher import forced_tokens
from nanovllm.errors import InvalidArgument
from nanovllm.speculative_config import SpeculativeConfig
from nanovllm.utils.interrupts import uninterrupted
from nanovllm.utils.numbers import shown

MEMORY = 0.9     # what a step's outcome still counts one draft later
PRIOR = 4.0      # drafts' worth of trust in what other sequences' drafts did, until a sequence has its own record
RETRY = 32       # tokens after which a sequence whose drafts did not pay tries again with one
LONGER = 4       # how often that grows to twice as many, as long as they do not pay
NOTHING = Record()  # of a sequence that has not drafted


def best_length(acceptance: float, cost: float | Callable[[int], float], most: int) -> int:
    """How many drafts give the most tokens for the time: 0 when even one does not pay.

    With k drafts, each right with probability a if those before it were, a step gives (1 - a**(k + 1)) / (1 - a) tokens
    (Leviathan et al. 2023, eq. 1) and takes 1 + k * cost of the time of a step without; or cost(k), where that is measured.
    """
    best, best_speed, tokens, likely = 0, 1.0, 1.0, 1.0
    for k in range(1, most + 1):
        likely *= acceptance
        tokens += likely
        if (speed := tokens / (cost(k) if callable(cost) else 1 + k * cost)) > best_speed:
            best, best_speed = k, speed
        elif not callable(cost):  # each further draft gains less than the one before and costs as much
            break
    return best


class Speculation:
    """Fills in `draft_token_ids` before a step, and learns after it what they were worth.

    Owns the drafter and a record of each sequence that drafted. Room for drafts, in the step's budget and in the cache, is
    set aside before anything is proposed, and only out of what nobody else needs: a draft never preempts, nor delays,
    another sequence's next token.

    most: drafts of one sequence in a step. most_in_step: drafts of all together; with as many sequences running as that or
        more, none drafts. A step that computes many tokens is no longer free, so drafts stop paying when enough run.

    token_cost: what one more token costs in a step, as a share of a step of one token. With n sequences a draft of each makes
        n more, so drafts cost more in a large batch.

    times: where given, step times overrule what counting tokens says (see `StepTimes`). Where even right drafts would not pay,
        there are none, but for a few now and then to look again. Without it everything follows from tokens, never from a
        clock: a run can be repeated step by step.
    """

    def __init__(self, drafter: Drafter, scheduler: Scheduler, settings: SpeculativeConfig, vocab_size: int,
                 token_cost: float = 0.03, looks_ahead: bool = False, times: StepTimes | None = None):
        self.drafter, self.counts = drafter, DraftCounts()
        self.most, self.most_in_step = settings.num_speculative_tokens, settings.disable_by_batch_size
        self.token_cost, self.num_failures, self.times = token_cost, 0, times
        self._scheduler, self._vocab_size, self._looks_ahead = scheduler, vocab_size, looks_ahead
        self._drafting: list[Sequence] = []
        self._records: dict[int, Record] = {}
        self._given_up: set[int] = set()  # sequences for which the drafter raised
        self._right, self._tried = 0.7 * PRIOR, PRIOR  # of all sequences, fading slowly

    def __repr__(self) -> str:
        return (f"Speculation({self.drafter!r}, at most {self.most} drafts, {self.counts.accepted} of "
                f"{self.counts.drafted} accepted)")

    @property
    def is_wanted(self) -> bool:
        """Whether some running sequence would draft now: then the engine does not look past a step.

        The next step of a sequence with drafts starts where its last one will have ended, which only the outcome says, and
        guesses follow the last token, which must be known. Were only those sequences held back, they would miss every
        second step.
        """
        running = self._scheduler.running
        if len(running) >= self.most_in_step or (self.times and self.times.lacks_plain(len(running))):
            return False
        cost = self._cost()
        return any(self._length(seq, cost) for seq in running)

    def propose(self) -> None:
        """Give running sequences drafts, where they pay and there is room."""
        for seq in self._drafting:
            if not seq.num_pending_tokens:  # they are not under way: left over from a step that failed before its launch
                seq.draft_token_ids = []
        running, self._drafting = self._scheduler.running, []
        if len(running) >= self.most_in_step or (self.times and self.times.lacks_plain(len(running))):
            return
        cost = self._cost()
        wanted = [(seq, length) for seq in running if (length := self._length(seq, cost)) and decodes(seq)]
        if wanted:
            self._draft(wanted)

    def _draft(self, wanted: list[tuple[Sequence, int]]) -> None:
        """Have the drafter propose up to so many tokens of each, as far as there is room."""
        with uninterrupted():
            limits = reserve(self._scheduler, wanted, self.most_in_step)
        self._drafting = drafting = [seq for seq, _ in wanted if seq.seq_id in limits]
        try:
            if drafting:
                self._fill_in(drafting, [limits[seq.seq_id] for seq in drafting])
        finally:
            with uninterrupted():
                for seq in drafting:
                    self._scheduler.block_manager.trim(seq, len(seq) + len(seq.draft_token_ids))

    def learn(self, batch: ScheduledBatch) -> None:
        """Take in the outcome of a step, and forget the sequences that it ended."""
        self._time(batch)
        for item in batch.items:
            if item.num_accepted is not None:
                self.counts.add(item.num_drafts, item.num_accepted)
                record = self._records.setdefault(item.seq.seq_id, Record())
                for i in range(min(item.num_accepted + 1, item.num_drafts)):  # behind the first wrong one nothing is learned
                    right = i < item.num_accepted
                    record.right, record.tried = MEMORY * record.right + right, MEMORY * record.tried + 1
                    self._right, self._tried = 0.99 * self._right + right, 0.99 * self._tried + 1
                if best_length(self._acceptance(record), self._cost(), self.most):
                    record.num_rests = 0
                else:
                    record.rests_until = len(item.seq) + (RETRY << min(record.num_rests, LONGER))
                    record.num_rests += 1
            if item.seq.is_finished:
                self.forget(item.seq.seq_id)

    def forget(self, seq_id: int) -> None:
        """A sequence has ended."""
        self._given_up.discard(seq_id)
        if self._records.pop(seq_id, None):
            try:
                self.drafter.forget(seq_id)
            except Exception as error:  # its text is whole, and must reach whoever waits for it
                self._tell(error, "A request had ended, and lost nothing.")

    def close(self) -> None:
        """Give the drafter's memory back."""
        self.drafter.close()

    def _acceptance(self, record: Record) -> float:
        """How likely the sequence's next draft is right; that of all sequences for one that has no record yet."""
        return (record.right + PRIOR * self._right / self._tried) / (record.tried + PRIOR)

    def _cost(self) -> float | Callable[[int], float]:
        """Of drafting and checking one more token of every sequence, as a share of a step without drafts; or, where steps are
        timed, what one with so many drafts takes, as a multiple of that."""
        n = max(1, len(self._scheduler.running))
        cost = self.drafter.cost + n * self.token_cost / (1 + (n - 1) * self.token_cost)
        return cost if self.times is None else partial(self.times.ratio, n, cost=cost)

    def _time(self, batch: ScheduledBatch) -> None:
        """Take in when a step ended."""
        if self.times is None:
            return
        if not batch.items or not all(item.is_decode for item in batch.items):
            self.times.interrupt()
            return
        most = max(item.num_reserved for item in batch.items)
        running = self._scheduler.running
        before_drafts = bool(running) and running[0].drafts_on_device  # as all of them are, or none
        self.times.note(len(batch.items), most, time.perf_counter(), before_drafts)

    def _length(self, seq: Sequence, cost: float | Callable[[int], float]) -> int:
        """How many drafts would pay for a sequence, room aside."""
        record = self._records.get(seq.seq_id, NOTHING)
        if len(seq) < record.rests_until or seq.seq_id in self._given_up:
            return 0
        # The last token of a request is never fed back, and a draft behind it would be for nothing.
        params, room = seq.sampling_params, self._scheduler.max_model_len - len(seq)
        most = min(self.most, params.max_tokens - seq.num_output_tokens - 1, room - 1)
        if most < 1:
            return 0
        if best := best_length(self._acceptance(record), cost, most):
            return best
        return int(best_length(1.0, cost, most) > 0)  # once more, after a rest; not where even a right draft would not pay

    def _fill_in(self, sequences: list[Sequence], limits: list[int]) -> None:
        for seq in sequences:
            self._records.setdefault(seq.seq_id, Record())
        try:
            proposals = self.drafter.propose(sequences, limits)
            self._check(proposals, sequences, limits)
        except Exception as error:
            self._give_up(sequences, error)
            return
        for seq, drafts, limit in zip(sequences, proposals, limits):
            drafts = list(drafts)
            if seq.matcher is not None:  # what the grammar does not allow cannot be drawn
                drafts = forced_tokens(seq.matcher, limit) or drafts[:seq.matcher.num_allowed(drafts)]
            seq.draft_token_ids = drafts
            self._note_miss(seq, bool(drafts))

    def _note_miss(self, seq: Sequence, has_drafts: bool = False) -> None:
        """Nothing found: look ahead for a while, which gains something, too."""
        record = self._records[seq.seq_id]
        record.num_misses = 0 if has_drafts else min(record.num_misses + 1, 5)
        if self._looks_ahead and record.num_misses:
            record.rests_until = len(seq) + 2 ** record.num_misses

    def _give_up(self, sequences: list[Sequence], error: Exception) -> None:
        self._given_up.update(seq.seq_id for seq in sequences)
        self._tell(error, f"The {len(sequences)} requests it was to draft for go on without drafts.")

    def _tell(self, error: Exception, outcome: str) -> None:
        """Of a drafter that raised. What it is and says is shown as far as that can be shown."""
        self.num_failures += 1
        try:
            said = f"{type(error).__name__}: {error}"
        except Exception:
            said = type(error).__name__
        warnings.warn(f"{shown(self.drafter)} raised {said} {outcome}", RuntimeWarning, stacklevel=3)

    def _check(self, proposals: object, sequences: list[Sequence], limits: list[int]) -> None:
        """Raise InvalidArgument unless a drafter's proposals are what `Drafter.propose` promises."""
        if not isinstance(proposals, (list, tuple)) or len(proposals) != len(sequences):
            raise InvalidArgument(f"propose returned {shown(proposals)}: it must be {len(sequences)} lists, one for each "
                                  "sequence; return an empty list where there is no guess.")
        for drafts, limit in zip(proposals, limits):
            if not isinstance(drafts, (list, tuple)) or len(drafts) > limit:
                raise InvalidArgument(f"propose returned {shown(drafts)}: it must be a list of at most {limit} tokens; cut it "
                                      "off.")
            for token in drafts:
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self._vocab_size:
                    raise InvalidArgument(f"propose returned the token {shown(token)}: it must be a whole number in [0, "
                                          f"{self._vocab_size}), the model's vocabulary; draft with the model's own tokenizer.")
