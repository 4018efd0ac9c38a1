"""Random paged batches with the answer computed apart from any backend, in float64 and in loops."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanovllm.utils.context import Context


@dataclass
class PagedCase:
    """One layer's inputs, the context, and what attention must give (float64, on the CPU)."""

    q: Tensor
    k: Tensor
    v: Tensor
    kv_cache: Tensor  # [2, num_blocks, block_size, num_kv_heads, head_dim]; NaN where nothing was stored
    context: Context
    scale: float
    expected: Tensor  # [num_tokens, num_heads, head_dim]

    def error(self, out: Tensor) -> float:
        """||out - expected|| / ||expected||; NaN when any element was left unwritten."""
        difference = out.detach().cpu().double().view_as(self.expected) - self.expected
        return float(difference.norm() / self.expected.norm())


def paged_case(
    sequences: list[tuple[int, int]],
    *,
    num_decodes: int = 0,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    consecutive: bool = False,
) -> PagedCase:
    """sequences: (query tokens, context length) each; a context length of 0 is a padding sequence.

    Blocks are scattered over a cache larger than the batch needs unless `consecutive`, and q, k, v are slices of
    one packed tensor, as the model's fused projection hands them over.
    """
    gen = torch.Generator().manual_seed(seed)
    counts = [-(-length // block_size) for _, length in sequences]
    num_blocks = sum(counts) + 5
    order = torch.arange(num_blocks) if consecutive else torch.randperm(num_blocks, generator=gen)
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    tables = torch.zeros(len(sequences), max(counts) + 1, dtype=torch.int32)
    kv_cache = torch.full((2, num_blocks, block_size, num_kv_heads, head_dim), float("nan"), dtype=dtype)

    num_tokens = sum(n for n, _ in sequences)
    width = num_heads + 2 * num_kv_heads
    packed = torch.randn(num_tokens, width * head_dim, generator=gen).to(dtype)
    q, k, v = (
        part.unflatten(1, (-1, head_dim)) for part in packed.to(device).split([h * head_dim for h in (
            num_heads, num_kv_heads, num_kv_heads)], dim=1)
    )  # fmt: skip
    new = packed.unflatten(1, (width, head_dim))
    queries, new_kv = new[:, :num_heads], (new[:, num_heads:-num_kv_heads], new[:, -num_kv_heads:])

    scale = head_dim**-0.5
    expected = torch.zeros(num_tokens, num_heads, head_dim, dtype=torch.float64)
    slots, cu = torch.full((num_tokens,), -1), [0]
    for i, (n, length) in enumerate(sequences):
        rows = range(cu[-1], cu[-1] + n)
        cu.append(cu[-1] + n)
        if length == 0:
            continue
        blocks = order[starts[i] : starts[i + 1]]
        tables[i, : len(blocks)] = blocks
        where = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[:length]
        slots[rows.start : rows.stop] = where[length - n :]
        history = torch.randn(2, length - n, num_kv_heads, head_dim, generator=gen).to(dtype)
        kv_cache.flatten(1, 2)[:, where[: length - n]] = history
        keys, values = (torch.cat([h, t[rows.start : rows.stop]]).double() for h, t in zip(history, new_kv, strict=True))
        for j, row in enumerate(rows):
            visible = length - n + j + 1
            for head in range(num_heads):
                group = head // (num_heads // num_kv_heads)
                weights = (keys[:visible, group] @ queries[row, head].double() * scale).softmax(0)
                expected[row, head] = weights @ values[:visible, group]

    context = Context(
        cu_seqlens_q=torch.tensor(cu, dtype=torch.int32, device=device),
        context_lens=torch.tensor([length for _, length in sequences], dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        slot_mapping=slots.to(device),
        max_seqlen_q=max(n for n, _ in sequences),
        max_seqlen_k=max(length for _, length in sequences),
        num_decodes=num_decodes,
        last_rows=torch.tensor(cu[1:], device=device) - 1,
    )
    return PagedCase(q, k, v, kv_cache.to(device), context, scale, expected)
