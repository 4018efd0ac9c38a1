"""Ranks as threads of one process: enough to see what tensor parallelism does, with nothing to start or to install."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from nanovllm.layers.tensor_parallel import TensorParallel


@dataclass
class MeetingPlace:
    """Where the threads of one run put what they bring, wait for each other, and take what all have brought."""

    size: int
    brought: list = field(init=False)
    everybody: threading.Barrier = field(init=False)
    num_sums: int = 0
    patience: float = 30  # seconds that a rank waits for the others

    def __post_init__(self):
        self.brought, self.everybody = [None] * self.size, threading.Barrier(self.size, timeout=self.patience)

    def exchange(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.brought[rank] = tensor.clone()
        self.everybody.wait()  # all have brought theirs
        parts = list(self.brought)
        self.everybody.wait()  # all have taken them; the next round may begin
        return parts


@dataclass(frozen=True)
class ThreadRank(TensorParallel):
    """A rank whose `group` is a MeetingPlace. Layers cannot tell it from one that talks to another GPU."""

    def all_reduce(self, tensor):
        if self.size == 1:
            return tensor
        if self.rank == 0:
            self.group.num_sums += 1
        return tensor.copy_(sum(self.group.exchange(self.rank, tensor)))

    def all_gather(self, tensor, dim=-1):
        return tensor if self.size == 1 else torch.cat(self.group.exchange(self.rank, tensor), dim)


def in_ranks(run: Callable[[TensorParallel], object], size: int, place: MeetingPlace | None = None) -> list:
    """`run(tp)` on every rank at once; their results, in rank order. An exception of one rank ends all."""
    place = place or MeetingPlace(size)

    def guarded(rank: int):
        try:
            with torch.inference_mode():
                return run(ThreadRank(rank, size, place))
        except BaseException:
            place.everybody.abort()  # nobody waits for a rank that is gone
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(size)]
    errors = [f.exception() for f in futures if f.exception()]
    if errors:  # the first cause, not the others' broken wait
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]
