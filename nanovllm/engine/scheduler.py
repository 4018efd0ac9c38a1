"""Which sequences run in a step, and how many tokens of each: continuous batching under one token budget."""

from bisect import insort
from itertools import islice

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.drafts import kept_tokens, roll_back_refused
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.engine.sequence_queues import SequenceQueues, queue_order
from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted


class Scheduler(SequenceQueues):
    """Decides which sequences run (Orca's iteration-level batching, Yu et al. 2022; chunked prefill, Agrawal et al. 2023).

    Owns the queues, and says of every step what runs in it. It never sees a tensor and never asks how long anything took.

    Each step has a budget of `max_num_batched_tokens`. Running sequences take their next token first, so a long prompt
    never stalls them; the rest goes to prompt chunks, first of admitted sequences, then of waiting ones in queue order.
    When blocks run out, the last running sequence in queue order is preempted: its blocks are freed, and it is recomputed
    later. A sequence is admitted only while every running one still has a free block for its next token; this reserve is
    the watermark that keeps admission from causing preemption.

    For a policy of your own, subclass this and override `order_key` (see `SequenceQueues`).
    """

    def __init__(self, block_manager: BlockManager, *, max_num_seqs: int = 512, max_num_batched_tokens: int = 16384,
                 max_model_len: int = 4096, eos_token_ids: tuple[int, ...] = ()):
        check(max_num_seqs >= 1, "max_num_seqs", max_num_seqs, "1 or more", "let at least one sequence run")
        check(max_num_batched_tokens >= 1, "max_num_batched_tokens", max_num_batched_tokens, "1 or more",
              "a step computes at least one token")
        # More sequences than budget could not all take a token each step, and someone would wait in the middle.
        super().__init__(block_manager, min(max_num_seqs, max_num_batched_tokens), max_model_len)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.eos_token_ids = frozenset(eos_token_ids)

    def __repr__(self) -> str:
        return (f"Scheduler(waiting={len(self.waiting)}, running={len(self.running)} of {self.max_num_seqs}, "
                f"budget={self.max_num_batched_tokens} tokens, preemptions={self.num_preemptions})")

    def schedule(self) -> ScheduledBatch:
        """Pick the next step's work: decode, then chunks of admitted prompts, then new admissions.

        While a step is in flight, sequences whose last token it draws wait for its end. So do those whose drafts it checks,
        unless the device knows the outcome in time (see `SequenceDrafts.waits_for_drafts`). All others run in the next step,
        too; of one with a grammar only the draw waits, see `ScheduledBatch.masks_wait`.
        """
        self.num_scheduled_steps += 1
        batch = ScheduledBatch()
        budget = self.max_num_batched_tokens
        decoding, prefilling = [], []
        for seq in self.running:
            if seq.num_uncomputed_tokens > 1:
                prefilling.append(seq)
            elif not (seq.num_pending_tokens and self._must_wait(seq)):
                decoding.append(seq)
        for seq in decoding + prefilling:
            if budget and seq.status is SequenceStatus.RUNNING:  # an earlier turn may have preempted it
                budget -= self._schedule_running(seq, budget, batch)
        if self.waiting and not batch.preempted:  # else the preempted would come straight back, or be overtaken
            self._admit(budget, batch)
        if batch.num_tokens > len(batch.items):
            batch.items.sort(key=lambda item: item.num_tokens > 1)
        return batch

    def advance(self, batch: ScheduledBatch) -> None:
        """Count `batch`, which is in flight, as computed, so that the step after it can be scheduled.

        Sequences that draw a token in it get a pending one, which takes part in everything but its own value: it has a
        position and a slot, and can be scheduled. Blocks it fills become findable before they are written: a
        sequence that finds one runs in a later step.
        """
        batch.is_advanced = True
        block_size = self.block_manager.block_size
        for item in batch.items:
            seq = item.seq
            if seq.status is SequenceStatus.RUNNING:
                item.advance()
                if item.start // block_size != seq.num_computed_tokens // block_size:
                    self.block_manager.commit(seq, item.start)

    def update(self, batch: ScheduledBatch, token_ids: list[int]) -> list[Sequence]:
        """Take in the tokens drawn for `batch`, in order: for each item that `samples` one, and one more for each draft.

        token_ids: below 0 where the scores were not finite, which ends the sequence with an error. Returns those that finished.
        """
        if not batch.is_advanced:
            self.advance(batch)
        finished, drawn = [], iter(token_ids)
        for item in batch.items:
            if not item.samples:
                continue
            seq, tokens = item.seq, list(islice(drawn, 1 + item.num_drafts))
            # The token of a sequence that ended while the step ran is dropped. One that was preempted meanwhile has lost its
            # blocks, but keeps the token.
            if seq.status is SequenceStatus.FINISHED:
                continue
            if reason := self._append(item, tokens):
                self._finish(seq, reason)
                finished.append(seq)
        return finished

    def roll_back(self, batch: ScheduledBatch) -> None:
        """Take back `advance`, after a step that failed: its sequences keep their blocks and compute the same again."""
        for item in batch.items:
            item.seq.num_pending_tokens = 0
            item.seq.drop_drafts()
            item.seq.num_computed_tokens = min(item.start, item.seq.num_computed_tokens)

    def _schedule_running(self, seq: Sequence, budget: int, batch: ScheduledBatch) -> int:
        """Give `seq` its next tokens, preempting others for room; returns how many it got (0 if it was preempted itself)."""
        num_tokens = min(seq.num_new_tokens, budget)
        upto = seq.num_computed_tokens + num_tokens
        has_room = upto <= len(seq.block_table) * self.block_manager.block_size
        while not has_room and self.block_manager.num_new_blocks(seq, upto) > self.block_manager.num_free_blocks:
            # The last in queue order first, but one that is already in this batch only when no other is left.
            scheduled = {item.seq.seq_id for item in batch.items}
            victim = next((s for s in reversed(self.running) if s.seq_id not in scheduled), seq)
            needed = counted(self.block_manager.num_new_blocks(seq, upto), "more block")
            self._preempt(victim, batch, f"sequence {seq.seq_id} needs {needed} and "
                          f"{counted(self.block_manager.num_free_blocks, 'is', 'are')} free; "
                          + ("all others are already in this step" if victim is seq else "this one is last in queue order"))
            if victim is seq:
                return 0
        if not has_room:
            self.block_manager.append(seq, upto)
        reason = self._running_reason(seq, num_tokens)
        batch.items.append(ScheduledSequence(seq, seq.num_computed_tokens, num_tokens, reason))
        batch.masks_wait |= seq.matcher is not None and seq.num_pending_tokens > 0
        return num_tokens

    def _admit(self, budget: int, batch: ScheduledBatch) -> None:
        """Admit waiting sequences in queue order while budget, max_num_seqs and blocks allow."""
        manager = self.block_manager
        # Blocks that admitted prompts will still need for the chunks to come.
        promised = sum(manager.num_new_blocks(seq, len(seq)) for seq in self.running)
        in_flight = self._blocks_being_computed(batch)
        skipped: list[Sequence] = []
        while self.waiting:
            seq = self.waiting[0]
            if budget == 0:
                batch.left_waiting[seq.seq_id] = f"the budget of {self.max_num_batched_tokens} tokens is spent"
                break
            if len(self.running) >= self.max_num_seqs:
                batch.left_waiting[seq.seq_id] = f"max_num_seqs={self.max_num_seqs} sequences are running"
                break
            # Log-probabilities of a prompt need every token of it computed.
            reuses = manager.enable_prefix_caching and seq.sampling_params.prompt_logprobs is None
            prefix = manager.find_cached_prefix(seq) if reuses else []
            hashes = seq.block_hashes(manager.block_size) if reuses else []
            if len(prefix) < len(hashes) and hashes[len(prefix)] in in_flight:
                batch.left_waiting[seq.seq_id] = "its next block is being computed in this step; it will find it cached"
                skipped.append(self.waiting.pop(0))
                continue
            needed = manager.num_new_blocks(seq, len(seq), prefix)
            if needed + promised + len(self.running) > manager.num_free_blocks:
                batch.left_waiting[seq.seq_id] = (
                    f"it needs {counted(needed, 'block')}; of {manager.num_free_blocks} free, {counted(promised, 'is', 'are')} "
                    f"promised to admitted prompts and {len(self.running)} kept for the next tokens of running sequences")
                break
            self.waiting.pop(0)
            manager.allocate(seq, prefix)
            num_tokens = min(seq.num_uncomputed_tokens, budget)
            manager.append(seq, seq.num_computed_tokens + num_tokens)
            promised += manager.num_new_blocks(seq, len(seq))
            insort(self.running, seq, key=queue_order)
            seq.status = SequenceStatus.RUNNING
            item = ScheduledSequence(seq, seq.num_computed_tokens, num_tokens, self._admit_reason(seq, num_tokens))
            batch.items.append(item)
            batch.admitted.append(seq)
            in_flight |= self._hashes_of(item)
            budget -= num_tokens
        self.waiting[:0] = skipped

    def _append(self, item: ScheduledSequence, drawn: list[int]) -> str | None:
        """Give the item's sequence the token drawn for it, behind the drafts that were right; returns why that ends it."""
        seq, reason, num_taken = item.seq, None, 0
        kept = kept_tokens(item, drawn)
        for token in kept:
            num_taken += 1
            if token >= 0:
                seq.append_token(token)
            else:
                seq.num_pending_tokens = 0
                seq.note_not_finite(len(seq))
            if reason := self._finish_reason(seq):
                break
        if item.num_drafts:
            roll_back_refused(item, min(num_taken, len(kept) - 1), self.block_manager)
        return reason

    def _must_wait(self, seq: Sequence) -> bool:
        """Whether a sequence with a pending token runs on only once that has come."""
        return seq.waits_for_drafts or self._is_full_length(seq)

    def _is_full_length(self, seq: Sequence) -> bool:
        """Whether its length ends it, once a pending token has arrived."""
        length = len(seq.token_ids) + seq.num_pending_tokens
        return length - seq.num_prompt_tokens >= seq.sampling_params.max_tokens or length >= self.max_model_len

    def _blocks_being_computed(self, batch: ScheduledBatch) -> set[bytes]:
        return set().union(*(self._hashes_of(item) for item in batch.items if not item.is_decode))

    def _hashes_of(self, item: ScheduledSequence) -> set[bytes]:
        if not self.block_manager.enable_prefix_caching:
            return set()
        size = self.block_manager.block_size
        return set(item.seq.block_hashes(size)[item.start // size:(item.start + item.num_tokens) // size])

    def _finish_reason(self, seq: Sequence) -> str | None:
        if seq.error is not None:
            self.block_manager.forget(seq)
            return "error"
        params, token = seq.sampling_params, seq.token_ids[-1]
        if token in self.eos_token_ids and not params.ignore_eos:
            return "stop"
        if token in params.stop_token_ids:
            seq.stop_reason = token
            return "stop"
        if seq.matcher is not None and seq.matcher.is_finished:
            return "stop"
        return "length" if self._is_full_length(seq) else None

    @staticmethod
    def _running_reason(seq: Sequence, num_tokens: int) -> str:
        if seq.num_uncomputed_tokens == 1:
            return "its next token" + (f" and {counted(num_tokens - 1, 'draft')}" if num_tokens > 1 else "")
        left = seq.num_uncomputed_tokens - num_tokens
        return f"{counted(num_tokens, 'more prompt token')}, {left} still to come" if left else "the last chunk of its prompt"

    @staticmethod
    def _admit_reason(seq: Sequence, num_tokens: int) -> str:
        what = "back after preemption" if seq.num_preemptions else "admitted"
        hit = f", {seq.num_cached_tokens} of {len(seq)} tokens found cached" if seq.num_cached_tokens else ""
        left = seq.num_uncomputed_tokens - num_tokens
        return f"{what}{hit}" + (f", chunked: {counted(left, 'token waits', 'tokens wait')} for budget" if left else "")
