"""Steps with prompts in them as one launch: the model's forward, captured for a few token counts.

A step that mixes chunks of prompts with decodes has another shape every time. Three things make a graph of it possible.
The number of tokens is padded to one of a few sizes. Every array lies in a fixed place, longer than need be: as many
decoding sequences as there may be tokens, empty where there are fewer, and room for some chunks. And attention over chunks
is launched for a fixed number of tiles of queries, which read from an array whose they are (`Context.tiles`). Logits and
draw stay outside: how many rows draw is another number, and they are a handful of launches.
"""

import numpy as np
import torch
from torch import Tensor

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.step_inputs import Layout
from nanovllm.models.causal_lm import CausalLM
from nanovllm.utils.context import Context

SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # tokens; beyond, the GPU takes longer than the launches
MAX_CHUNKS = 16  # sequences with more than one token
MAX_DECODES = 512  # sequences with one


class StepGraphs:
    """One graph for each size, over one set of fixed inputs.

    Owns the inputs and the graphs; weights and cache stay the model runner's, and must stay where they are. queries_per_tile:
    how many queries of a sequence one program of the attention kernel takes. capture: False runs the
    same padded steps without graphs, on any device.
    """

    def __init__(self, model: CausalLM, kv_cache: Tensor, *, max_tokens: int, max_num_seqs: int, max_model_len: int,
                 queries_per_tile: int, capture: bool = True):
        self._model, self._kv_cache, self._max_model_len = model, kv_cache, max_model_len
        self.block_size, self._queries_per_tile = kv_cache.shape[3], queries_per_tile
        self._max_blocks = -(-max_model_len // self.block_size)
        self._max_decodes = min(max_num_seqs, MAX_DECODES)
        self.sizes = [size for size in SIZES if size < max_tokens] + ([max_tokens] if max_tokens <= SIZES[-1] else [])
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._fixed = torch.zeros(self._offsets(self.sizes[-1])[-1], dtype=torch.uint8, device=kv_cache.device)
        if capture:
            self._capture()

    def size_for(self, batch: ScheduledBatch) -> int | None:
        """The smallest size that holds the step; None when none does."""
        num_decodes = batch.num_decodes
        if num_decodes > self._max_decodes or len(batch.items) - num_decodes > MAX_CHUNKS:
            return None
        return next((size for size in self.sizes if size >= batch.num_tokens), None)

    def write_inputs(self, layout: Layout, num_decodes: int, size: int, last_rows: Tensor) -> tuple[Tensor, Tensor, Context]:
        """Copy a step's arrays, padded, to where the graph of `size` reads them: (input_ids, positions, context)."""
        most, n = self._decodes(size), num_decodes
        host = torch.zeros(self._offsets(size)[-1], dtype=torch.uint8, pin_memory=self._fixed.is_cuda)
        ids, positions, slots, starts, lens, tables, tiles = (view.numpy() for view in self._views(host, size))
        num_tokens, num_chunks = len(layout.input_ids), len(layout.context_lens) - n
        ids[:num_tokens], positions[:num_tokens] = layout.input_ids, layout.positions
        slots[:num_tokens], slots[num_tokens:] = layout.slot_mapping, -1
        starts[:most] = np.arange(most)
        starts[most:] = num_tokens
        starts[most:most + num_chunks + 1] = layout.cu_seqlens_q[n:]
        width = layout.block_tables.shape[1]
        lens[:n], lens[most:most + num_chunks] = layout.context_lens[:n], layout.context_lens[n:]
        tables[:n, :width], tables[most:most + num_chunks, :width] = layout.block_tables[:n], layout.block_tables[n:]
        found = query_tiles(np.diff(layout.cu_seqlens_q[n:]), self._queries_per_tile)
        tiles[:len(found)], tiles[len(found):] = found, -1
        self._fixed[:len(host)].copy_(host, non_blocking=True)
        return self._inputs(size, last_rows)

    def replay(self, size: int) -> Tensor:
        """The hidden states of the step whose inputs were written last, [size, hidden_size], good until the next one."""
        if size not in self._graphs:
            return self._step(size)
        graph, hidden = self._graphs[size]
        graph.replay()
        return hidden

    def _step(self, size: int) -> Tensor:
        input_ids, positions, context = self._inputs(size, self._fixed[:0].view(torch.int64))
        return self._model(input_ids, positions, self._kv_cache, context)

    def _decodes(self, size: int) -> int:
        return min(size, self._max_decodes)

    def _shapes(self, size: int) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """input_ids, positions, slot_mapping, cu_seqlens_q, context_lens, block_tables, tiles."""
        seqs = self._decodes(size) + MAX_CHUNKS
        tiles = min(size, -(-size // self._queries_per_tile) + MAX_CHUNKS)
        return [(torch.int64, (size,))] * 3 + [(torch.int32, shape) for shape in (
            (seqs + 1,), (seqs,), (seqs, self._max_blocks), (tiles, 2))]

    def _offsets(self, size: int) -> list[int]:
        """Where each of `_shapes` begins, in bytes, and where the last one ends."""
        ends = np.cumsum([-(-dtype.itemsize * int(np.prod(shape)) // 16) * 16 for dtype, shape in self._shapes(size)])
        return [0, *ends.tolist()]

    def _views(self, memory: Tensor, size: int) -> list[Tensor]:
        return [memory[start:start + dtype.itemsize * int(np.prod(shape))].view(dtype).view(shape)
                for (dtype, shape), start in zip(self._shapes(size), self._offsets(size))]

    def _inputs(self, size: int, last_rows: Tensor) -> tuple[Tensor, Tensor, Context]:
        input_ids, positions, slot_mapping, cu_seqlens_q, context_lens, tables, tiles = self._views(self._fixed, size)
        return input_ids, positions, Context(
            cu_seqlens_q=cu_seqlens_q, context_lens=context_lens, block_tables=tables, slot_mapping=slot_mapping,
            max_seqlen_q=size, max_seqlen_k=self._max_model_len, num_decodes=self._decodes(size),
            last_rows=last_rows, tiles=tiles)

    @torch.inference_mode()
    def _capture(self) -> None:
        """All sequences are empty meanwhile, and nothing is stored."""
        pool = None
        for size in reversed(self.sizes):
            *_, slot_mapping, _, _, _, tiles = self._views(self._fixed, size)
            slot_mapping.fill_(-1)
            tiles.fill_(-1)
            self._views(self._fixed, size)[4].zero_()
            self._step(size)  # not captured: kernels are compiled and loaded now
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                hidden = self._step(size)
            pool = graph.pool()
            self._graphs[size] = graph, hidden


def query_tiles(num_queries: np.ndarray, per_tile: int) -> np.ndarray:
    """Cut sequences of so many queries into tiles: [num_tiles, 2] int32, the sequence and the tile's first query.

    The last tiles of a sequence have most keys to visit, so they come first.
    """
    tiles = [(seq, first) for seq, n in enumerate(num_queries.tolist()) for first in range(0, n, per_tile)]
    return np.array(sorted(tiles, key=lambda tile: -tile[1]), np.int32).reshape(-1, 2)
