"""Drafting on the device, one step ahead of what the host knows. Imports no torch."""

from typing import TYPE_CHECKING, Any, Protocol

from nanovllm.engine.draft_records import Record
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.drafts_control import NOTHING, RETRY, Speculation
from nanovllm.engine.runner import Runner
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.step_times import StepTimes
from nanovllm.engine.token_cost import measured_token_cost
from nanovllm.speculative_config import SpeculativeConfig
from nanovllm.utils.interrupts import uninterrupted

if TYPE_CHECKING:
    from nanovllm.config import Config  # it needs torch

UNKNOWN = -1  # in place of a draft: the device makes it
TRIAL = 8   # steps with drafts, to see whether they pay by now
PAUSE = 16  # steps without a look at what could be drafted, at most
LONGEST_REST = 3  # how often a rest grows to twice as many steps
WORTH = 1.1  # what drafts must gain for steps without to be left for them: the way there and back is long

# What one more token costs in a step of one: on an H200 with 8B parameters, on a CPU with the offline model.
TOKEN_COST = {"cuda": 0.005, "mps": 0.005, "cpu": 0.03}


class DeviceRows(Protocol):
    """What is asked of `draft_graphs.DraftGraphs`. max_rows: sequences that it has room for. lengths: numbers of drafts that
    its steps may have, in rising order."""

    max_rows: int
    lengths: list[int]

    def knows(self, seq: Sequence) -> bool: ...


class SpeculationAhead(Speculation):
    """Decides as `Speculation` does, and has the device draft wherever every sequence of a step allows it.

    That is while all that run decode, draw from their logits alone, and nobody waits for a first step. The engine then looks
    ahead: a step in flight checks up to k drafts of a sequence, and the next one is scheduled for it all the same. It counts
    on the most tokens that may have come, in blocks and in length, and begins where the device says. In every other step
    drafts come from the host, as they do without a GPU.

    A step has the same number of drafts for all, as its graph computes them anyway: the number that gives the most tokens for
    the time. Where that is none, a trial of some steps comes after ever longer rests.

    A small model's step takes a GPU less time than a look at what eight sequences could draft takes the host. So while the
    same sequences run and drafts were not worth it, or none were found, it looks at some steps only.
    """

    def __init__(self, *args: Any, rows: DeviceRows, **settings: Any):
        super().__init__(*args, **settings)
        self.rows: DeviceRows | None = rows
        self._rest, self._trial, self._num_rests = 2 * RETRY, 0, 1  # in steps
        self._pause, self._paused_for, self._num_misses = 0, list[Sequence](), 0
        self.worth = WORTH

    @property
    def is_wanted(self) -> bool:
        return not self._pauses() and not self._fits() and super().is_wanted

    def propose(self) -> None:
        if self._pauses():
            self._pause -= 1
            return
        running, fits = self._scheduler.running, self._fits()
        if self._paused_for != running:
            self._num_misses = 0
        self._pause, self._paused_for = 0, []
        length = self._best_for_all(running) if fits else 0
        if length and self._propose_on_device(running, length):
            return
        for seq in running:
            if seq.drafts_on_device:
                seq.drafts_on_device, seq.draft_token_ids = False, []
                if not seq.num_pending_tokens:
                    self._scheduler.block_manager.trim(seq, len(seq))
        if not fits:
            super().propose()

    def _pauses(self) -> bool:
        """Whether the last look said that the next ones can be left out, and nobody has come or gone since."""
        return self._pause > 0 and self._paused_for == self._scheduler.running and not self._scheduler.waiting

    def _pause_for(self, running: list[Sequence], steps: int) -> None:
        self._pause, self._paused_for = steps, list(running)

    def _best_for_all(self, running: list[Sequence]) -> int:
        """How many drafts each is to have in the next step; 0 for a step without."""
        n, rows = len(running), self.rows
        if rows is None or (self.times and self.times.lacks_plain(n)):
            return 0
        lengths = [length for length in rows.lengths if length <= min(self.most, max(rows.lengths[0], self.most_in_step // n))]
        if n >= self.most_in_step or not lengths:
            self._pause_for(running, PAUSE)
            return 0
        # Where even the best sequence's drafts would not pay, none are looked for until it is time for a trial.
        best = max(self._acceptance(self._records.get(seq.seq_id, NOTHING)) for seq in running)
        least = 1.0 if self._trial or any(seq.drafts_on_device for seq in running) else self.worth
        hopeful = self._trial > 0 or self._fastest(lengths, [best], least) > 0
        if hopeful or not self._rest:
            chances = [self._chance(seq) for seq in running]
            if length := self._fastest(lengths, chances, least):
                self._rest, self._num_rests, self._num_misses = 2 * RETRY, 1, 0
                return length
            if self._trial and any(chances):
                self._trial -= 1
                return lengths[-1]
            if not self._rest and self._fastest(lengths, [float(chance > 0) for chance in chances]):  # right ones would pay
                self._num_rests += 1
                self._rest, self._trial = RETRY << min(self._num_rests, LONGEST_REST), TRIAL
                return 0
            self._pause_for(running, (1 << self._num_misses) - 1)
            self._num_misses = min(self._num_misses + 1, 2)
        else:
            self._pause_for(running, min(self._rest - 1, PAUSE))
        self._rest = max(0, self._rest - 1 - self._pause)
        return 0

    def _fastest(self, lengths: list[int], chances: list[float], least: float = 1.0) -> int:
        """The number of drafts with the most tokens for the time; 0 where that is not `least` times as many as without."""
        cost, best, best_speed = self._cost(), 0, least
        for length in lengths:
            tokens = sum(sum(chance ** i for i in range(length + 1)) for chance in chances) / len(chances)
            if (speed := tokens / (cost(length) if callable(cost) else 1 + length * cost)) > best_speed:
                best, best_speed = length, speed
        return best

    def _chance(self, seq: Sequence) -> float:
        """How likely its next draft is right; 0 where there will be none."""
        if seq.num_output_tokens + 1 >= seq.sampling_params.max_tokens:
            return 0.0
        record = self._records.setdefault(seq.seq_id, Record())  # the drafter may keep notes of it from here on
        try:
            found = not record.num_misses if seq.drafts_on_device else self.drafter.likely(seq)
        except Exception as error:
            self._give_up([seq], error)
            found = False
        return self._acceptance(record) if found else 0.0

    def learn(self, batch: ScheduledBatch) -> None:
        reserved = drafted = accepted = False
        for item in batch.items:
            reserved, drafted = reserved or item.num_reserved > 0, drafted or item.num_drafts > 0
            accepted = accepted or bool(item.num_accepted)
            if item.seq.drafts_on_device:
                try:
                    self.drafter.follow(item.seq)
                except Exception as error:
                    self._give_up([item.seq], error)
                if item.num_reserved and item.seq.seq_id in self._records:
                    self._note_miss(item.seq, item.num_drafts > 0)
        if reserved:
            self._pause = 0  # what was decided did not count on this outcome
        if drafted and not accepted:
            self._trial = 0  # it has been seen that they do not pay, and every way there and back costs a millisecond
        super().learn(batch)

    def forget(self, seq_id: int) -> None:
        super().forget(seq_id)
        self._paused_for = []  # it held the sequence

    def close(self) -> None:
        self.rows = None  # and with it the memory of its graphs
        super().close()

    def _fits(self) -> bool:
        """Whether the device can draft for all that run, and for them alone."""
        scheduler, rows = self._scheduler, self.rows
        running = scheduler.running
        if rows is None or scheduler.waiting or not 0 < len(running) <= rows.max_rows:
            return False
        for seq in running:
            if not (seq.num_uncomputed_tokens == 1 and seq.matcher is None and seq.sampling_params.draws_from_logits
                    and (seq.drafts_on_device or not seq.num_pending_drafts) and seq.seq_id not in self._given_up
                    and _longest(seq) <= scheduler.max_model_len):
                return False
        return True

    def _propose_on_device(self, running: list[Sequence], length: int) -> bool:
        """False, and nothing is changed but blocks, when there is no room or the drafter raises."""
        rows = self.rows
        try:
            with uninterrupted():
                limits = self._reserve_ahead(running, length)
            if limits is None or rows is None:
                return False
            self.drafter.catch_up([seq for seq in running if not rows.knows(seq)])
        except Exception as error:
            self._give_up(running, error)
            return False
        for seq, limit in zip(running, limits):
            seq.drafts_on_device, seq.draft_token_ids = True, [UNKNOWN] * limit
            self._records.setdefault(seq.seq_id, Record())
        self._drafting = []
        return True

    def _reserve_ahead(self, running: list[Sequence], length: int) -> list[int] | None:
        """How many drafts each may have, with blocks for the most tokens that may come; None when these do not suffice."""
        scheduler, manager = self._scheduler, self._scheduler.block_manager
        blocks = manager.num_free_blocks - sum(manager.num_new_blocks(seq, _longest(seq)) for seq in running)
        if blocks < 0:
            return None
        tokens = min(scheduler.max_num_batched_tokens - len(running), self.most_in_step)
        share, limits = max(1, self.most_in_step // len(running)), []
        for seq in running:
            longest, held = _longest(seq), len(seq.block_table)
            plain = manager.num_new_blocks(seq, longest)
            most = min(length, seq.sampling_params.max_tokens - seq.num_output_tokens - 1, share)
            limit = max(0, min(most, tokens, scheduler.max_model_len - longest))
            while limit and manager.num_new_blocks(seq, longest + limit) - plain > blocks:
                limit -= 1
            tokens -= limit
            blocks -= manager.num_new_blocks(seq, longest + limit) - plain
            manager.append(seq, longest + limit)
            self.drafter.overwrite(seq.block_table[held:])
            limits.append(limit)
        return limits


def _longest(seq: Sequence) -> int:
    """Its length, if the step in flight keeps every draft."""
    return len(seq) + seq.num_pending_tokens + seq.num_pending_drafts


def make_speculation(drafter: Drafter, scheduler: Scheduler, config: "Config", looks_ahead: bool, runner: Runner
                     ) -> Speculation:
    """What decides about drafts in an engine. The device drafts by itself where the runner has `draft_graphs`.

    looks_ahead: whether the engine schedules a step while another one runs.
    """
    device, rows, token_cost = config.device.type, getattr(runner, "draft_graphs", None), TOKEN_COST[config.device.type]
    # Plain PyTorch on a CPU is what one reads and compares with: there a run can be repeated step by step.
    if config.attention_backend == "cpu" and config.tensor_parallel_size == 1:
        token_cost = measured_token_cost(runner, config.kvcache_block_size, config.max_model_len, token_cost)
    settings = (drafter, scheduler, config.speculative_config or SpeculativeConfig(), config.hf_config.vocab_size,
                token_cost, looks_ahead, StepTimes() if device == "cuda" else None)
    return SpeculationAhead(*settings, rows=rows) if rows and looks_ahead else Speculation(*settings)
