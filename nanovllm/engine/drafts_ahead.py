"""Drafting on the device, one step ahead of what the host knows. Imports no torch."""

from typing import Any, Protocol

from nanovllm.engine.drafts_control import Record, Speculation
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence
from nanovllm.utils.interrupts import uninterrupted

UNKNOWN = -1  # in place of a draft: the device makes it


class DeviceRows(Protocol):
    """What is asked of `draft_graphs.DraftGraphs`. max_rows: sequences that it has room for."""

    max_rows: int

    def knows(self, seq: Sequence) -> bool: ...


class SpeculationAhead(Speculation):
    """Decides as `Speculation` does, and has the device draft wherever every sequence of a step allows it.

    That is while all that run decode, draw from their logits alone, and nobody waits for a first step. The engine then looks
    ahead: a step in flight checks up to k drafts of a sequence, and the next one is scheduled for it all the same. It counts
    on the most tokens that may have come, in blocks and in length, and begins where the device says. In every other step
    drafts come from the host, as they do without a GPU.
    """

    def __init__(self, *args: Any, rows: DeviceRows, **settings: Any):
        super().__init__(*args, **settings)
        self.rows: DeviceRows | None = rows

    @property
    def is_wanted(self) -> bool:
        return super().is_wanted and not self._fits()

    def propose(self) -> None:
        running = self._scheduler.running
        if self._fits() and super().is_wanted and self._propose_on_device(running):
            return
        for seq in running:
            if seq.drafts_on_device:
                seq.drafts_on_device, seq.draft_token_ids = False, []
                if not seq.num_pending_tokens:
                    self._scheduler.block_manager.trim(seq, len(seq))
        super().propose()

    def learn(self, batch: ScheduledBatch) -> None:
        for item in batch.items:
            if item.seq.drafts_on_device:
                self.drafter.follow(item.seq)
                if item.num_reserved and item.seq.seq_id in self._records:
                    self._note_miss(item.seq, item.num_drafts > 0)
        super().learn(batch)

    def close(self) -> None:
        self.rows = None  # and with it the memory of its graphs
        super().close()

    def _fits(self) -> bool:
        """Whether the device can draft for all that run, and for them alone."""
        scheduler, rows = self._scheduler, self.rows
        running = scheduler.running
        return rows is not None and not scheduler.waiting and 0 < len(running) <= rows.max_rows and all(
            seq.num_uncomputed_tokens == 1 and seq.matcher is None and seq.sampling_params.draws_from_logits
            and (seq.drafts_on_device or not seq.num_pending_drafts) and seq.seq_id not in self._given_up
            and _longest(seq) <= scheduler.max_model_len for seq in running)

    def _propose_on_device(self, running: list[Sequence]) -> bool:
        """False, and nothing is changed but blocks, when there is no room or the drafter raises."""
        with uninterrupted():
            limits = self._reserve_ahead(running)
        rows = self.rows
        if limits is None or rows is None:
            return False
        try:
            self.drafter.catch_up([seq for seq in running if not rows.knows(seq)])
        except Exception as error:
            self._give_up(running, error)
            return False
        for seq, limit in zip(running, limits):
            seq.drafts_on_device, seq.draft_token_ids = True, [UNKNOWN] * limit
            self._records.setdefault(seq.seq_id, Record())  # the drafter may keep notes of it from here on
        self._drafting = []
        return True

    def _reserve_ahead(self, running: list[Sequence]) -> list[int] | None:
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
            limit = max(0, min(self._length(seq), share, tokens, scheduler.max_model_len - longest))
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
