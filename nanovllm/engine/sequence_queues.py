"""The sequences of an engine: those that wait, those that run, in which order, and how they come and go."""

from bisect import insort

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.utils.checks import check_request
from nanovllm.utils.numbers import is_int

STEPS_PER_PRIORITY = 64  # what one unit of priority is worth, in steps of waiting


class SequenceQueues:
    """Owns the waiting queue and the running list, both in queue order. It never says which of them run in a step.

    Queue order is fixed on arrival by `order_key`: the number of the step before which the request arrived, plus `priority`
    times STEPS_PER_PRIORITY. A request that waits long enough therefore runs before any later one, whatever their
    priorities, and none starves.

    max_num_seqs: most sequences that run at once. max_model_len: most tokens of one, prompt and output together.
    """

    def __init__(self, block_manager: BlockManager, max_num_seqs: int, max_model_len: int):
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_scheduled_steps = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def validate(self, num_prompt_tokens: int, max_tokens: int, priority: int = 0) -> None:
        """Raise InvalidRequest for a request that could never finish, before anything is queued.

        The last generated token is never fed back, so a request needs cache for one token less than its length.
        """
        check_request(is_int(priority) and abs(priority) <= 100, "priority", priority, "a whole number in [-100, 100]",
                      "use 0 for an ordinary request, less for one to be served sooner")
        check_request(num_prompt_tokens >= 1, "prompt length", num_prompt_tokens, "at least 1 token", "pass a non-empty prompt")
        check_request(num_prompt_tokens < self.max_model_len, "prompt length", num_prompt_tokens,
                      f"below max_model_len={self.max_model_len} tokens", "shorten the prompt or raise max_model_len")
        longest = min(num_prompt_tokens + max_tokens, self.max_model_len)
        capacity = self.block_manager.num_blocks * self.block_manager.block_size
        check_request(longest - 1 <= capacity, "prompt + max_tokens", longest,
                      f"at most {capacity + 1} tokens, what a KV cache of {self.block_manager.num_blocks} blocks of "
                      f"{self.block_manager.block_size} can hold",
                      "lower max_tokens, shorten the prompt or raise num_kvcache_blocks")

    def order_key(self, seq: Sequence) -> int:
        """What the queues are sorted by, lowest first; equal keys by arrival. Asked once, when the sequence is added."""
        return self.num_scheduled_steps + STEPS_PER_PRIORITY * seq.priority

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises InvalidRequest when it could never finish."""
        self.validate(seq.num_prompt_tokens, seq.sampling_params.max_tokens, seq.priority)
        seq.order_key = self.order_key(seq)
        insort(self.waiting, seq, key=queue_order)

    def abort(self, seq_id: int, reason: str = "abort") -> Sequence | None:
        """Take a sequence out of the engine and free its blocks; None when it is not there (it may just have ended).

        reason: its finish_reason: "abort", "stop" (a stop string was found in its text) or "error".
        """
        for seq in (*self.running, *self.waiting):
            if seq.seq_id == seq_id:
                self._finish(seq, reason)
                return seq
        return None

    def check_integrity(self) -> None:
        """Raise RuntimeError unless queues, statuses and block references agree. Cheap enough for every step."""
        for queue, allowed in ((self.running, {SequenceStatus.RUNNING}),
                               (self.waiting, {SequenceStatus.WAITING, SequenceStatus.PREEMPTED})):
            for seq in queue:
                if seq.status not in allowed:
                    raise RuntimeError(f"{seq!r} is in the wrong queue")
        if len(self.running) > self.max_num_seqs:
            raise RuntimeError(f"{len(self.running)} running sequences, cap {self.max_num_seqs}")
        self.block_manager.check_integrity([*self.running, *self.waiting])

    def _preempt(self, seq: Sequence, batch: ScheduledBatch, reason: str) -> None:
        """Free the blocks of a running sequence and let it wait again, at its old place in queue order."""
        self.running.remove(seq)
        self.block_manager.free(seq)
        seq.status = SequenceStatus.PREEMPTED
        seq.leave_device_rows()
        seq.num_preemptions += 1
        self.num_preemptions += 1
        insort(self.waiting, seq, key=queue_order)
        batch.preempted.append(seq)
        batch.preemption_reasons[seq.seq_id] = reason

    def _finish(self, seq: Sequence, reason: str) -> None:
        """Take a sequence out of its queue for good and free its blocks."""
        (self.running if seq.status is SequenceStatus.RUNNING else self.waiting).remove(seq)
        seq.finish_reason, seq.matcher = reason, None
        seq.status = SequenceStatus.FINISHED  # last: another thread may look at it, and then takes all the rest
        self.block_manager.free(seq)


def queue_order(seq: Sequence) -> tuple[int, int]:
    return seq.order_key, seq.seq_id
