"""Who runs this step, and how many tokens of each: continuous batching under one token budget."""

from collections import deque
from dataclasses import dataclass, field

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.utils.checks import check


@dataclass(slots=True)
class ScheduledSequence:
    """The part of one sequence that runs in this step: tokens start .. start + num_tokens - 1."""

    seq: Sequence
    start: int
    num_tokens: int
    reason: str
    samples: bool = field(init=False)    # reaches the last token, so the next can be drawn; unfinished chunks do not
    is_decode: bool = field(init=False)  # feeds back one generated token, as against (re)computing a prompt

    def __post_init__(self):
        self.samples = self.start + self.num_tokens == len(self.seq)
        self.is_decode = self.samples and self.num_tokens == 1 and self.start >= self.seq.num_prompt_tokens


@dataclass(slots=True)
class ScheduledBatch:
    """What one step runs. Pure data: the model runner turns it into tensors, the trace into a record.

    items: sequences with one token first (the decode kernel takes those), then the longer prompt chunks.
    """

    items: list[ScheduledSequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    left_waiting: dict[int, str] = field(default_factory=dict)  # seq_id -> why it was not admitted

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)

    @property
    def num_decodes(self) -> int:
        return sum(item.num_tokens == 1 for item in self.items)


class Scheduler:
    """Decides who runs (Orca's iteration-level batching, Yu et al. 2022; chunked prefill, Agrawal et al. 2023).

    Owns the waiting queue and the running list. It never sees a tensor and never asks how long anything took.

    One budget of `max_num_batched_tokens` a step: running sequences take their next token first, so a long prompt never
    stalls them; what is left goes to prompt chunks, first of admitted sequences, then of waiting ones in order of
    arrival. When blocks run out the newest running sequence is preempted: it gives its blocks back and is recomputed
    later. New sequences are admitted only while every running one still finds a block for its next token; that
    reserve is the watermark that keeps admission from causing preemption.
    """

    def __init__(self, block_manager: BlockManager, *, max_num_seqs: int = 512, max_num_batched_tokens: int = 16384,
                 max_model_len: int = 4096, eos_token_ids: tuple[int, ...] = ()):
        check(max_num_seqs >= 1, "max_num_seqs", max_num_seqs, "1 or more", "let at least one sequence run")
        check(max_num_batched_tokens >= 1, "max_num_batched_tokens", max_num_batched_tokens, "1 or more",
              "a step computes at least one token")
        self.block_manager = block_manager
        self.max_num_batched_tokens = max_num_batched_tokens
        # More sequences than budget could not all take a token each step, and someone would wait in the middle.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self.max_model_len = max_model_len
        self.eos_token_ids = frozenset(eos_token_ids)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def __repr__(self) -> str:
        return (f"Scheduler(waiting={len(self.waiting)}, running={len(self.running)} of {self.max_num_seqs}, "
                f"budget={self.max_num_batched_tokens} tokens, preemptions={self.num_preemptions})")

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def validate(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raise ValueError for a request that could never finish, before anything is queued.

        The last generated token is never fed back, so a request needs cache for one token less than its length.
        """
        check(num_prompt_tokens >= 1, "prompt length", num_prompt_tokens, "at least 1 token", "pass a non-empty prompt")
        check(num_prompt_tokens < self.max_model_len, "prompt length", num_prompt_tokens,
              f"below max_model_len={self.max_model_len} tokens", "shorten the prompt or raise max_model_len")
        longest = min(num_prompt_tokens + max_tokens, self.max_model_len)
        capacity = self.block_manager.num_blocks * self.block_manager.block_size
        check(longest - 1 <= capacity, "prompt + max_tokens", longest,
              f"at most {capacity + 1} tokens, what a KV cache of {self.block_manager.num_blocks} blocks of "
              f"{self.block_manager.block_size} can hold",
              "lower max_tokens, shorten the prompt or raise num_kvcache_blocks")

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises ValueError when it could never finish."""
        self.validate(seq.num_prompt_tokens, seq.sampling_params.max_tokens)
        self.waiting.append(seq)

    def abort(self, seq_id: int) -> Sequence | None:
        """Take a sequence out of the engine and free its blocks; None when it is not there (it may just have ended)."""
        for seq in (*self.running, *self.waiting):
            if seq.seq_id == seq_id:
                (self.running if seq.status is SequenceStatus.RUNNING else self.waiting).remove(seq)
                self._finish(seq, "abort")
                return seq
        return None

    def schedule(self) -> ScheduledBatch:
        """Pick the next step's work: decode, then chunks of admitted prompts, then new admissions."""
        batch = ScheduledBatch()
        budget = self.max_num_batched_tokens
        decoding = [seq for seq in self.running if seq.num_uncomputed_tokens == 1]
        prefilling = [seq for seq in self.running if seq.num_uncomputed_tokens > 1]
        for seq in decoding + prefilling:
            if budget and seq.status is SequenceStatus.RUNNING:  # an earlier turn may have preempted it
                budget -= self._schedule_running(seq, budget, batch)
        if not batch.preempted:  # whoever was just thrown out must not come back, nor be overtaken, in the same step
            self._admit(budget, batch)
        batch.items.sort(key=lambda item: item.num_tokens > 1)
        return batch

    def update(self, batch: ScheduledBatch, token_ids: list[int]) -> list[Sequence]:
        """Take in the tokens drawn for `batch`, one for each item that `samples`, in order. Returns who finished."""
        finished = []
        tokens = iter(token_ids)
        for item in batch.items:
            seq = item.seq
            token = next(tokens) if item.samples else None
            if seq.status is not SequenceStatus.RUNNING:  # aborted while the step ran
                continue
            seq.num_computed_tokens = item.start + item.num_tokens
            self.block_manager.commit(seq, item.start)
            if token is not None:
                seq.append_token(token)
                if reason := self._finish_reason(seq):
                    self.running.remove(seq)
                    self._finish(seq, reason)
                    finished.append(seq)
        return finished

    def check_integrity(self) -> None:
        """Raise RuntimeError unless queues, statuses and block references agree. For tests: O(cache)."""
        for queue, allowed in ((self.running, {SequenceStatus.RUNNING}),
                               (self.waiting, {SequenceStatus.WAITING, SequenceStatus.PREEMPTED})):
            for seq in queue:
                if seq.status not in allowed:
                    raise RuntimeError(f"{seq!r} stands in the wrong queue")
        if len(self.running) > self.max_num_seqs:
            raise RuntimeError(f"{len(self.running)} running sequences, cap {self.max_num_seqs}")
        self.block_manager.check_integrity([*self.running, *self.waiting])

    def _schedule_running(self, seq: Sequence, budget: int, batch: ScheduledBatch) -> int:
        """Give `seq` its next tokens, preempting the newest for room; returns how many it got (0 if it fell itself)."""
        num_tokens = min(seq.num_uncomputed_tokens, budget)
        upto = seq.num_computed_tokens + num_tokens
        while self.block_manager.num_new_blocks(seq, upto) > self.block_manager.num_free_blocks:
            # Newest first, and never one that already has its place in this batch while another can go.
            scheduled = {item.seq.seq_id for item in batch.items}
            victim = next((s for s in reversed(self.running) if s.seq_id not in scheduled), seq)
            self._preempt(victim, batch)
            if victim is seq:
                return 0
        self.block_manager.append(seq, upto)
        reason = "its next token" if seq.num_uncomputed_tokens == 1 else self._chunk_reason(seq, num_tokens)
        batch.items.append(ScheduledSequence(seq, seq.num_computed_tokens, num_tokens, reason))
        return num_tokens

    def _admit(self, budget: int, batch: ScheduledBatch) -> None:
        """Admit waiting sequences in order of arrival while budget, places and blocks last."""
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
                batch.left_waiting[seq.seq_id] = f"all {self.max_num_seqs} places are taken"
                break
            prefix = manager.find_cached_prefix(seq)
            hashes = seq.block_hashes(manager.block_size) if manager.enable_prefix_caching else []
            if len(prefix) < len(hashes) and hashes[len(prefix)] in in_flight:
                batch.left_waiting[seq.seq_id] = "its next block is being computed in this step; it will find it cached"
                skipped.append(self.waiting.popleft())
                continue
            needed = manager.num_new_blocks(seq, len(seq), prefix)
            if needed + promised + len(self.running) > manager.num_free_blocks:
                batch.left_waiting[seq.seq_id] = (
                    f"it needs {needed} blocks; of {manager.num_free_blocks} free, {promised} are promised to admitted "
                    f"prompts and {len(self.running)} kept for the next tokens of running sequences")
                break
            self.waiting.popleft()
            manager.allocate(seq, prefix)
            num_tokens = min(seq.num_uncomputed_tokens, budget)
            manager.append(seq, seq.num_computed_tokens + num_tokens)
            promised += manager.num_new_blocks(seq, len(seq))
            self.running.append(seq)
            seq.status = SequenceStatus.RUNNING
            item = ScheduledSequence(seq, seq.num_computed_tokens, num_tokens, self._admit_reason(seq, num_tokens))
            batch.items.append(item)
            batch.admitted.append(seq)
            in_flight |= self._hashes_of(item)
            budget -= num_tokens
        self.waiting.extendleft(reversed(skipped))

    def _blocks_being_computed(self, batch: ScheduledBatch) -> set[bytes]:
        return set().union(*(self._hashes_of(item) for item in batch.items if not item.is_decode))

    def _hashes_of(self, item: ScheduledSequence) -> set[bytes]:
        if not self.block_manager.enable_prefix_caching:
            return set()
        size = self.block_manager.block_size
        return set(item.seq.block_hashes(size)[item.start // size:(item.start + item.num_tokens) // size])

    def _preempt(self, seq: Sequence, batch: ScheduledBatch) -> None:
        self.running.remove(seq)
        self.block_manager.free(seq)
        seq.status = SequenceStatus.PREEMPTED
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(seq)
        batch.preempted.append(seq)

    def _finish(self, seq: Sequence, reason: str) -> None:
        seq.status, seq.finish_reason = SequenceStatus.FINISHED, reason
        self.block_manager.free(seq)

    def _finish_reason(self, seq: Sequence) -> str | None:
        params, token = seq.sampling_params, seq.token_ids[-1]
        if token in params.stop_token_ids or (token in self.eos_token_ids and not params.ignore_eos):
            return "stop"
        if seq.num_output_tokens >= params.max_tokens or len(seq) >= self.max_model_len:
            return "length"
        return None

    @staticmethod
    def _chunk_reason(seq: Sequence, num_tokens: int) -> str:
        left = seq.num_uncomputed_tokens - num_tokens
        return f"{num_tokens} more prompt tokens, {left} still to come" if left else "the last chunk of its prompt"

    @staticmethod
    def _admit_reason(seq: Sequence, num_tokens: int) -> str:
        what = "back after preemption" if seq.num_preemptions else "admitted"
        hit = f", {seq.num_cached_tokens} of {len(seq)} tokens found cached" if seq.num_cached_tokens else ""
        left = seq.num_uncomputed_tokens - num_tokens
        return f"{what}{hit}" + (f", chunked: {left} tokens wait for budget" if left else "")
