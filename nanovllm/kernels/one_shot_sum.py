"""Sums over ranks in one trip over the link: every rank writes its numbers into the others' memory, as their own flags.

A barrier before reading what others have written, and one after, would be two more trips. There is none here: a place that
nothing has been written to holds -0.0, which no rank sends (it sends 0.0 instead), so whoever reads a place waits until
something else is there. NCCL's LL protocols and TensorRT-LLM's "Lamport" all-reduce work like this. Each rank sends its
whole tensor to every other, and adds up in rank order, so all get the same bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import has_pdl

BLOCK, NUM_WARPS = 1024, 4  # numbers that a program adds up, and its warps
SLOTS = 3  # of an inbox; the kernel says why three


@triton.jit
def _one_shot_sum_kernel(
    x_ptr: tl.tensor, inbox_ptr: tl.tensor, inboxes_ptr: tl.tensor, count_ptr: tl.tensor, size: tl.tensor,
    EMPTY: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, SLOTS: tl.constexpr, CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
) -> None:  # fmt: skip
    """A program adds up BLOCK numbers, and knows nothing of the others: it has its own places in the inboxes and its own count.

    It uses the slots of an inbox in turn, and empties the one that it used last. No rank can write there before the sum after
    next: it would have to have finished the next, for which it needs what this rank sends when this sum is over.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    count = tl.load(count_ptr + tl.program_id(0))
    slot, last = count % SLOTS, (count + SLOTS - 1) % SLOTS
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    bits_type: tl.constexpr = inbox_ptr.dtype.element_ty
    bits = x.to(bits_type, bitcast=True)
    empty = tl.full([BLOCK], EMPTY, bits_type)
    bits = tl.where(bits == empty, 0, bits).to(bits_type)
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            their_ptr = tl.multiple_of(tl.load(inboxes_ptr + rank).to(tl.pointer_type(bits_type)), 16)
            tl.store(their_ptr + (slot * RANKS + RANK) * CAPACITY + place, bits, mask=inside)
    for rank in tl.static_range(RANKS):
        tl.store(inbox_ptr + (last * RANKS + rank) * CAPACITY + place, empty)
    total = tl.zeros([BLOCK], tl.float32)
    for rank in tl.static_range(RANKS):
        theirs = bits
        if rank != RANK:
            from_ptr = inbox_ptr + (slot * RANKS + rank) * CAPACITY + place
            theirs = tl.load(from_ptr, mask=inside, other=0, volatile=True)
            while tl.max((theirs == empty).to(tl.int32), 0) > 0:
                theirs = tl.load(from_ptr, mask=inside, other=0, volatile=True)
        total += theirs.to(x.dtype, bitcast=True).to(tl.float32)
    tl.store(x_ptr + place, total.to(x.dtype), mask=inside)
    tl.store(count_ptr + tl.program_id(0), count + 1)


def _empty(bits: torch.dtype) -> int:
    """The bits of -0.0, as an integer: Triton's compiler takes the number -0.0 for 0.0."""
    return torch.iinfo(bits).min


@dataclass(frozen=True, eq=False)
class Inboxes:
    """Where the ranks send each other numbers.

    own: this rank's, where the others can write, [3, ranks, capacity] of the numbers' bits; capacity: a multiple of BLOCK.
    addresses: of every rank's, [ranks] int64. counts: sums so far, of each program, [capacity / BLOCK] int32.
    """

    own: Tensor
    addresses: Tensor
    counts: Tensor

    @staticmethod
    def numel(ranks: int, capacity: int) -> int:
        """Of the memory that `own` takes."""
        return SLOTS * ranks * capacity

    @classmethod
    def over(cls, memory: Tensor, addresses: list[int]) -> "Inboxes":
        """memory: `numel` floating point numbers at this rank's address, emptied here, before any rank may sum."""
        own = memory.view(torch.int16 if memory.itemsize == 2 else torch.int32).view(SLOTS, len(addresses), -1)
        own.fill_(_empty(own.dtype))
        counts = own.new_zeros(own.shape[-1] // BLOCK, dtype=torch.int32)
        return cls(own, torch.tensor(addresses, dtype=torch.int64, device=own.device), counts)


def one_shot_sum(x: Tensor, inboxes: Inboxes, rank: int) -> None:
    """Sum over ranks, in place. x: of the same shape on every rank, contiguous, at most `capacity` of the inboxes' numbers."""
    pdl = has_pdl(x.device)
    _, ranks, capacity = inboxes.own.shape
    _one_shot_sum_kernel[(triton.cdiv(x.numel(), BLOCK),)](
        x, inboxes.own, inboxes.addresses, inboxes.counts, x.numel(), EMPTY=_empty(inboxes.own.dtype), RANK=rank, RANKS=ranks,
        SLOTS=SLOTS, CAPACITY=capacity, BLOCK=BLOCK, PDL=pdl, launch_pdl=pdl, num_warps=NUM_WARPS,
    )  # fmt: skip
