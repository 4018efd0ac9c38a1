"""Attention in plain PyTorch for a GPU that runs no kernels of ours: old cards, and other makers'."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.utils.context import Context

PADDING = 2.0  # a group of sequences is cut where it would hold so many times the keys that are needed
# Not cuDNN: it prepares every new width for milliseconds, and a group's width grows from step to step.
FORMS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
WIDTH = 16  # the longest sequence of a group is rounded up to a multiple: masks of other widths are copied by each layer
GROUP_KEYS = 1 << 18  # keys that a group copies at most: 1 GiB of them, and as much of values, with 8 heads of 128 in bf16


class BatchedTorchBackend(TorchBackend):
    """As the reference, but decodes run a group at a time: a GPU takes as long to be told of one sequence as of a hundred.

    Sequences of like lengths make a group. Their keys are copied out of the cache side by side, padded to the longest, and
    one scaled_dot_product_attention serves all. Chunks of prompts, long enough to fill a GPU, run one by one as there. Which
    sequences go together, and which tokens are stored, is looked up once a step and kept for the step's other layers: to
    look, the host waits for the GPU.
    """

    def __init__(self) -> None:
        self._grouped: Context | None = None
        self._groups: list[tuple[Tensor, Tensor, Tensor]] = []
        self._slot_mapping: Tensor | None = None
        self._stored: Tensor | None = None  # None: all of them

    def store(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
        if self._slot_mapping is not slot_mapping:
            stored = (slot_mapping >= 0).nonzero()[:, 0]
            self._slot_mapping, self._stored = slot_mapping, None if len(stored) == len(slot_mapping) else stored
        if self._stored is not None:
            k, v, slot_mapping = k[self._stored], v[self._stored], slot_mapping[self._stored]
        k_cache.flatten(0, 1).index_copy_(0, slot_mapping, k)
        v_cache.flatten(0, 1).index_copy_(0, slot_mapping, v)

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, context: Context, scale: float) -> Tensor:
        n, num_kv_heads = context.num_decodes, k_cache.shape[2]
        if self._grouped is not context:
            self._grouped, self._groups = context, _groups(context, k_cache.shape[1], q.dtype)
        if n < len(context.context_lens):
            chunks = replace(context, cu_seqlens_q=context.cu_seqlens_q[n:], context_lens=context.context_lens[n:],
                             block_tables=context.block_tables[n:])
            out = super().attend(q, k_cache, v_cache, chunks, scale)
        else:
            out = torch.zeros_like(q)
        keys, values = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
        for rows, slots, hidden in self._groups:
            shape = (len(rows), -1, *keys.shape[1:])
            k, v = (cache.index_select(0, slots).view(shape).transpose(1, 2) for cache in (keys, values))
            grouped = q.index_select(0, rows).unflatten(1, (num_kv_heads, -1))  # heads that share a key, side by side
            with sdpa_kernel(FORMS):
                seen = F.scaled_dot_product_attention(grouped, k, v, attn_mask=hidden, scale=scale)
            out.index_copy_(0, rows, seen.flatten(1, 2))
        return out


def _groups(context: Context, block_size: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(rows [n] int64, slots of their keys [n * width] int64, -inf where a key is only padding [n, 1, 1, width]) a group.

    What pads a sequence is its own first key, which holds numbers, as a slot that nobody wrote may not.
    """
    lens = context.context_lens[:context.num_decodes].tolist()
    order = sorted((row for row, length in enumerate(lens) if length), key=lambda row: lens[row])
    parts: list[list[int]] = []
    needed = 0
    width = [-(-length // WIDTH) * WIDTH for length in lens]
    for row in order:
        longest = width[row]
        size = len(parts[-1]) + 1 if parts else 0
        if not parts or size * longest > PADDING * (needed + longest) or size * longest > GROUP_KEYS:
            parts.append([])
            needed = 0
        parts[-1].append(row)
        needed += longest
    groups, device = [], context.block_tables.device
    for part in parts:
        rows = torch.tensor(part, dtype=torch.int64, device=device)
        position = torch.arange(width[part[-1]], dtype=torch.int64, device=device)
        visible = position < context.context_lens[rows, None]
        position = position * visible  # 0 in the padding
        blocks = context.block_tables[rows].gather(1, position // block_size).long()
        hidden = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, float("-inf"))
        groups.append((rows, (blocks * block_size + position % block_size).flatten(), hidden[:, None, None]))
    return groups
