"""From scheduled sequences to the exact arrays of a step: one long row of tokens, no padding."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from nanovllm.engine.scheduled_batch import ScheduledSequence
from nanovllm.layers.sampler import SamplingBatch
from nanovllm.utils.context import Context


@dataclass(slots=True)
class StepInputs:
    """The tensors of one step. input_ids, positions: [num_tokens]; context: how attention reads the paged cache."""

    input_ids: Tensor
    positions: Tensor
    context: Context
    sampling: SamplingBatch | None
    graph_size: int | None = None  # of the graph in whose inputs the tensors lie, padded (see `step_graphs`)


@dataclass(slots=True)
class Layout:
    """A step as numpy arrays on the host, in the terms of `StepInputs` and `Context`.

    pending: [num_pending] int64, rows of input_ids whose token is still being drawn; they hold 0 for now. pending_ids: the
    seq_id of each, in the same order.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    cu_seqlens_q: np.ndarray
    context_lens: np.ndarray
    block_tables: np.ndarray
    slot_mapping: np.ndarray
    last_rows: np.ndarray
    pending: np.ndarray
    pending_ids: list[int]

    @classmethod
    def of(cls, items: list[ScheduledSequence], block_size: int) -> "Layout":
        """Lay the scheduled tokens of all sequences end to end."""
        lens = np.array([item.num_tokens for item in items], np.int32)
        starts = np.array([item.start for item in items], np.int32)
        cu_seqlens_q = np.zeros(len(items) + 1, np.int32)
        np.cumsum(lens, out=cu_seqlens_q[1:])
        token_ids, pending, pending_ids = [], [], []
        for item in items:
            seq = item.seq
            token_ids += seq.token_ids[item.start:item.start + item.num_tokens]
            if item.samples and seq.num_pending_tokens:
                pending.append(len(token_ids))
                pending_ids.append(seq.seq_id)
                token_ids.append(0)
            token_ids += item.draft_token_ids
        owner = np.repeat(np.arange(len(items)), lens)
        positions = np.arange(len(token_ids)) - (cu_seqlens_q[:-1] - starts)[owner]
        tables = block_tables([item.seq.block_table for item in items])
        slots = tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size
        cached = np.array([item.seq.num_cached_tokens for item in items])
        slots[positions < cached[owner]] = -1  # shared blocks are never written, not even with equal values
        return cls(
            np.array(array("q", token_ids)), positions, cu_seqlens_q, starts + lens, tables, slots,
            last_rows=np.array([int(end) - item.num_tokens + position - item.start - 1 for item, end in zip(
                items, cu_seqlens_q[1:]) for position in item.drawn_positions], np.int64),
            pending=np.array(pending, np.int64), pending_ids=pending_ids)


def block_tables(tables: list[list[int]]) -> np.ndarray:
    """[num_seqs, longest] int32, rows padded with 0."""
    lens = np.array([len(table) for table in tables])
    padded = np.zeros((len(tables), lens.max()), np.int32)
    padded[np.arange(padded.shape[1]) < lens[:, None]] = np.fromiter(chain.from_iterable(tables), np.int32, int(lens.sum()))
    return padded


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays on the device, in one asynchronous copy for all of them.

    The copy is made from pinned memory, which torch reuses only once the copy is done.
    """
    arrays = [np.ascontiguousarray(a) for a in arrays]
    if device.type != "cuda":
        return [torch.from_numpy(a).to(device) for a in arrays]
    starts = np.cumsum([0] + [-(-a.nbytes // 16) * 16 for a in arrays]).tolist()  # kernels read 16 bytes at a time
    packed = torch.empty(starts[-1], dtype=torch.uint8, device="cpu", pin_memory=True)
    host = packed.numpy()
    for a, start in zip(arrays, starts):
        host[start:start + a.nbytes] = a.reshape(-1).view(np.uint8)
    copied = packed.to(device, non_blocking=True)
    return [copied[start:start + a.nbytes].view(torch.from_numpy(a).dtype).view(a.shape) for a, start in zip(arrays, starts)]
