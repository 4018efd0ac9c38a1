"""One engine of a simulated fleet: the real Scheduler and BlockManager, and a clock in place of a model. Imports no torch."""

from collections.abc import Callable

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence

FIRST_ANSWER = 1 << 50  # ids from here on are made-up tokens of answers; those below belong to prompts


class SimulatedReplica:
    """Steps its scheduler, each step as long as the cost model says.

    Owns the scheduler, the block manager and the step under way. It does not know the time: who drives it passes the time
    in, and calls `finish_step` when the step that `start_step` began has ended. A made-up token is a number that tells one
    request's answer from every other's.

    batch: the step under way, or None. began, ends: its times, in seconds. busy_s: seconds spent in steps so far.
    """

    def __init__(self, index: int, scheduler: Scheduler, cost: Callable[[ScheduledBatch], float]):
        self.index = index
        self.scheduler = scheduler
        self.cost = cost
        self.batch: ScheduledBatch | None = None
        self.began = self.ends = 0.0
        self.busy_s = 0.0

    def __repr__(self) -> str:
        return f"SimulatedReplica({self.index}, {self.scheduler!r}, busy {self.busy_s:.1f} s)"

    def start_step(self, now: float) -> bool:
        """Schedule and begin a step, if there is work. Raises RuntimeError when the scheduler runs nothing although
        sequences wait."""
        while self.scheduler.has_unfinished:
            batch = self.scheduler.schedule()
            if batch.items:
                self.batch, self.began, self.ends = batch, now, now + self.cost(batch)
                self.busy_s += self.ends - now
                return True
            if not batch.preempted:
                raise RuntimeError(f"{self.scheduler!r} scheduled nothing although sequences wait.")
        return False

    def finish_step(self) -> tuple[ScheduledBatch, list[Sequence]]:
        """End the step under way: its tokens are drawn at `ends`. Returns what ran, and the sequences that ended. Raises
        RuntimeError when there is none."""
        batch, now = self.batch, self.ends
        if batch is None:
            raise RuntimeError(f"{self!r} has no step under way; call start_step first.")
        self.batch = None
        tokens = []
        for item in batch.items:
            if item.samples:
                item.seq.token_times.append(now)
                tokens.append(FIRST_ANSWER + item.seq.seq_id)
        for seq in batch.admitted:
            if seq.scheduled_at is None:
                seq.scheduled_at, seq.num_hit_tokens = self.began, seq.num_cached_tokens
        return batch, self.scheduler.update(batch, tokens)


class ReceivingBlockManager(BlockManager):
    """A block manager whose sequences may come with their keys and values, computed by another engine.

    `receive` says whose have arrived. On its first admission such a sequence takes its blocks and counts as computed up to
    its last token, which is the one to decode. After a preemption they are gone, and it computes its prompt like any other.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True):
        super().__init__(num_blocks, block_size, enable_prefix_caching)
        self._received: set[int] = set()

    def receive(self, seq: Sequence) -> None:
        self._received.add(seq.seq_id)

    def allocate(self, seq: Sequence, prefix: list[int]) -> None:
        super().allocate(seq, prefix)
        if seq.seq_id in self._received:
            self._received.remove(seq.seq_id)
            seq.num_computed_tokens = len(seq) - 1
