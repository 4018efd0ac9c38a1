"""Sums of small tensors over ranks whose GPUs see each other's memory, in one kernel instead of NCCL's.

A decode step sums a few kilobytes twice a layer. NCCL takes 16 microseconds for it, nearly all of it to get started;
`kernels/one_shot_sum.py` takes two. The memory that every rank can write to is torch's symmetric memory.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanovllm.layers.tensor_parallel import TensorParallel

if TYPE_CHECKING:  # it imports Triton
    from nanovllm.kernels.one_shot_sum import Inboxes

MOST_BYTES = 16 << 20  # of a tensor, divided by the ranks: each sends all of it to every other
DTYPES = (torch.bfloat16, torch.float32)
ALIGNMENT = 16  # bytes that one thread moves at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class OneShotTensorParallel(TensorParallel):
    """A TensorParallel that sums small tensors in one shot, on the current stream, in a CUDA graph or outside.

    As with NCCL, all ranks must sum the same shapes in the same order. Whether a tensor is small depends on nothing else, so
    all ranks go the same way.
    """

    dtype: torch.dtype
    inboxes: "Inboxes"

    def takes(self, tensor: Tensor) -> bool:
        """Whether it can be summed here: small, contiguous, of the right dtype, in whole pieces of 16 bytes."""
        aligned = tensor.nbytes % ALIGNMENT == 0 == tensor.storage_offset() * tensor.itemsize % ALIGNMENT
        return (tensor.dtype == self.dtype and aligned and tensor.is_contiguous()
                and 0 < tensor.numel() <= self.inboxes.own.shape[-1])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if not self.takes(tensor):
            return super().all_reduce(tensor)
        from nanovllm.kernels.one_shot_sum import one_shot_sum
        one_shot_sum(tensor, self.inboxes, self.rank)
        return tensor


def with_one_shot_sums(tp: TensorParallel, device: torch.device, dtype: torch.dtype) -> tuple[TensorParallel, str]:
    """One with one-shot sums on every rank; or `tp` itself on every rank, and why.

    device: this rank's GPU; rank 0 has the first of as many as there are ranks. To be called by all ranks of the default
    process group at once.
    """
    if device.type != "cuda":
        return tp, "the ranks run on no GPU"
    found: Any = None
    for stage in (_allocate, _exchange, _try):
        ready, reason = 1, "another rank could not set it up"
        try:
            found = stage(tp, device, dtype, found)
        except Exception as error:  # a private module of torch: of what kind its errors are is not said
            ready, reason = 0, f"{type(error).__name__}: {error}"
        # Agreed on before any rank goes on and waits for one that will not come.
        if not tp.smallest(ready, device):
            return tp, reason
    return found, ""


def _allocate(tp: TensorParallel, device: torch.device, dtype: torch.dtype, _: None) -> Tensor:
    """Memory that can be shared. Raises RuntimeError where no GPU could see it, and whatever torch raises."""
    from nanovllm.kernels.one_shot_sum import Inboxes
    if dtype not in DTYPES:
        raise RuntimeError(f"the kernel was only tried with bfloat16 and float32, not with {dtype}")
    first = device.index - tp.rank
    for other in range(first, first + tp.size):
        if other != device.index and not torch.cuda.can_device_access_peer(device.index, other):
            raise RuntimeError(f"cuda:{device.index} cannot reach the memory of cuda:{other}")
    # The sum needs no multicast, which not every machine allows; read when the first memory is allocated.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    import torch.distributed._symmetric_memory as symmetric_memory
    capacity = MOST_BYTES // tp.size // dtype.itemsize
    return symmetric_memory.empty(Inboxes.numel(tp.size, capacity), dtype=dtype, device=device)


def _exchange(tp: TensorParallel, device: torch.device, dtype: torch.dtype, memory: Tensor) -> OneShotTensorParallel:
    """Map every rank's memory, and empty this one's."""
    import torch.distributed as dist
    import torch.distributed._symmetric_memory as symmetric_memory

    from nanovllm.kernels.one_shot_sum import Inboxes
    assert dist.group.WORLD is not None
    handle = symmetric_memory.rendezvous(memory, dist.group.WORLD.group_name)
    inboxes = Inboxes.over(memory, list(handle.buffer_ptrs))
    return OneShotTensorParallel(tp.rank, tp.size, tp.group, dtype=dtype, inboxes=inboxes)


def _try(tp: TensorParallel, device: torch.device, dtype: torch.dtype, own: OneShotTensorParallel) -> OneShotTensorParallel:
    """Sum once: what the machine cannot do should fail now."""
    ones = own.all_reduce(torch.ones(ALIGNMENT, dtype=dtype, device=device))
    if not bool((ones == tp.size).all()):
        raise RuntimeError(f"ones over {tp.size} ranks add up to {ones.tolist()}")
    return own
