"""Random inputs of one layer's attention, for chapter 08."""

import random

import torch
from torch import Tensor

from nanovllm.layers.attention import AttentionBackend
from nanovllm.utils.context import Context

from .device import DEVICE


class Step:
    """Random inputs of one layer's attention in one step, blocks scattered over a cache that holds NaN elsewhere.

    sequences: (query tokens, context length) each; single-token sequences must come first, as in the engine.
    q: [num_tokens, num_heads, dim]; k, v: [num_tokens, num_kv_heads, dim]; k_cache, v_cache: [num_blocks, block_size,
    num_kv_heads, dim]; context, scale: what a backend's `attend` takes.
    """

    def __init__(self, sequences, *, num_heads=4, num_kv_heads=2, dim=16, block_size=4, seed=0):
        draw = torch.Generator().manual_seed(seed)
        counts = [-(-length // block_size) for _, length in sequences]
        num_blocks = sum(counts) + 3
        order = torch.randperm(num_blocks, generator=draw).split([*counts, 3])
        tables = torch.zeros(len(sequences), max(counts), dtype=torch.int32)
        cache = torch.full((2, num_blocks, block_size, num_kv_heads, dim), float("nan"))
        slots, starts = [], [0]
        for row, (blocks, (num_queries, length)) in enumerate(zip(order, sequences)):
            tables[row, :len(blocks)] = blocks
            places = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[:length]
            old = places[:length - num_queries]
            cache.flatten(1, 2)[:, old] = torch.randn(2, len(old), num_kv_heads, dim, generator=draw)
            slots.append(places[length - num_queries:])
            starts.append(starts[-1] + num_queries)
        heads = (num_heads, num_kv_heads, num_kv_heads)
        self.q, self.k, self.v = (torch.randn(starts[-1], n, dim, generator=draw).to(DEVICE) for n in heads)
        self.k_cache, self.v_cache = cache.to(DEVICE)
        self.scale = dim**-0.5
        self.context = Context(
            cu_seqlens_q=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
            context_lens=torch.tensor([length for _, length in sequences], dtype=torch.int32, device=DEVICE),
            block_tables=tables.to(DEVICE), slot_mapping=torch.cat(slots).to(DEVICE),
            max_seqlen_q=max(n for n, _ in sequences), max_seqlen_k=max(length for _, length in sequences),
            num_decodes=sum(n == 1 for n, _ in sequences), last_rows=torch.tensor(starts[1:], device=DEVICE) - 1)

    def through(self, backend: AttentionBackend) -> Tensor:
        """Store this step's keys and values in a copy of the cache and attend, with `backend`."""
        k_cache, v_cache = self.k_cache.clone(), self.v_cache.clone()
        backend.store(self.k, self.v, k_cache, v_cache, self.context.slot_mapping)
        return backend.attend(self.q, k_cache, v_cache, self.context, self.scale)


def random_steps(count: int):
    """Steps of every kind: decodes, whole prompts, chunks behind a cached prefix; several block sizes and groups."""
    draw = random.Random(0)
    for seed in range(count):
        decodes = [(1, draw.randrange(1, 40)) for _ in range(draw.randrange(0, 4))]
        chunks = [(n, n + draw.choice([0, 0, draw.randrange(20)])) for n in (draw.randrange(2, 12) for _ in range(2))]
        num_heads, num_kv_heads = draw.choice([(4, 2), (4, 1), (2, 2), (6, 2)])
        yield Step(decodes + chunks, num_heads=num_heads, num_kv_heads=num_kv_heads, block_size=draw.choice([1, 4, 16]),
                   seed=seed)
