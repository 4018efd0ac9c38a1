"""Decode steps captured once and replayed: one launch instead of some two hundred and fifty.

A decode step of a small model is hundreds of kernels of a few microseconds each, and launching one from Python costs more
than it runs. A CUDA graph is the list of launches of one step, kept on the device and started as a whole. It repeats them
exactly, with the same sizes and the same addresses, and so everything that changes from step to step must lie in fixed
tensors: the rows of `layers.row_state`. Sizes are met by padding, a graph for each of a few batch sizes.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from nanovllm.engine.decode_rows import DecodeRows
from nanovllm.engine.scheduled_batch import ScheduledSequence
from nanovllm.engine.step_inputs import to_device
from nanovllm.layers.sampler import Draw, FilteredDraw
from nanovllm.layers.token_bitmask import ApplyBitmask
from nanovllm.models.causal_lm import CausalLM
from nanovllm.utils.context import Context
from nanovllm.utils.filters import Filters
from nanovllm.utils.row_state import RowState


class RowKernels(Protocol):
    """The module that changes the rows on the device: `layers.row_state`, or its twin in `kernels`."""

    def write_rows(self, state: RowState, records: Tensor, entries: Tensor, drawn: Tensor) -> None: ...

    def advance(self, state: RowState, num_rows: int, block_size: int) -> None: ...


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, then multiples of 8, further and further apart, up to `most`: from 32 on, less than a fifth is padding."""
    sizes, size = [1, 2, 4], 8
    while size < most:
        sizes.append(size)
        size += max(8, 2 ** (size.bit_length() - 1) // 4)
    return [s for s in sizes if s < most] + [most]


class DecodeGraphs:
    """Runs steps in which every sequence takes one token and draws the next, embedding to draw in one replay.

    Owns the rows, on the device and in the host's picture of them, and one graph for each batch size; all share one pool
    of memory, as only one runs at a time. Weights and cache stay the model runner's, and must stay where they are: the
    graphs know their addresses. A draw by masks is a second, small graph, and one behind filters a third, replayed only when
    some row has them.

    capture: False runs the same step without graphs, on any device.
    """

    def __init__(self, model: CausalLM, draw: Draw, filtered_draw: FilteredDraw, apply_bitmask: ApplyBitmask,
                 row_kernels: RowKernels, kv_cache: Tensor, *, max_num_seqs: int, max_model_len: int, capture: bool = True):
        self.block_size, self.max_model_len = kv_cache.shape[3], max_model_len
        max_blocks = -(-max_model_len // self.block_size)
        self.rows = DecodeRows(batch_sizes(max_num_seqs), self.block_size, max_blocks)
        self.state = RowState.empty(max_num_seqs, max_blocks, kv_cache.device)
        self._model, self._kernels, self._kv_cache = model, row_kernels, kv_cache
        self._draw, self._filtered_draw, self._apply_bitmask = draw, filtered_draw, apply_bitmask
        self._starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=kv_cache.device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._mask_graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._filter_graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if capture:
            self._capture(batch_sizes(max_num_seqs))

    def launch(self, items: list[ScheduledSequence], drawn: Tensor | None, drawn_by: dict[int, int]) -> Tensor:
        """Enqueue a step; returns its logits, [batch size, vocab_size], good until the next one.

        Row `rows.row_of[seq_id]` of `state` and of the logits is the sequence's; the token it draws is in `state.drawn`, but
        for rows with masks and filters, which `draw_masked` and `draw_filtered` have to follow for.
        drawn, drawn_by: the tokens last drawn, if any, and where each sequence's stands among them.
        """
        size, *changes = self.rows.assign(items, drawn_by)
        if any(len(change) for change in changes):
            records, entries = to_device(changes, self.state.drawn.device)
            self._kernels.write_rows(self.state, records, entries, self.state.drawn if drawn is None else drawn)
        if size not in self._graphs:
            logits = self._step(size)
        else:
            graph, logits = self._graphs[size]
            graph.replay()
        return logits

    def draw_masked(self, logits: Tensor, rows: Tensor, bits: Tensor) -> None:
        """Some rows draw again, among the tokens that their bits allow. Forbids the others in the logits themselves.

        logits: as `launch` returned them. rows: [num_masked] int64. bits: see `layers.token_bitmask`.
        """
        self._apply_bitmask(logits, rows, bits)
        self._replay(self._mask_graphs, self._draw_again, logits)

    def draw_filtered(self, logits: Tensor) -> None:
        """Rows with filters draw again, and now as they ask. Costs nothing when there are none."""
        if self.rows.any_filtered:
            self._replay(self._filter_graphs, self._draw_filtered, logits)

    @staticmethod
    def _replay(graphs: dict[int, torch.cuda.CUDAGraph], captured: Callable[[Tensor], None], logits: Tensor) -> None:
        if graph := graphs.get(len(logits)):
            graph.replay()
        else:
            captured(logits)

    def _step(self, size: int) -> Tensor:
        """What a graph holds: the rows move on, the model runs, and each row draws its token."""
        state = self.state
        self._kernels.advance(state, size, self.block_size)
        context = Context(
            cu_seqlens_q=self._starts[:size + 1], context_lens=state.context_lens[:size],
            block_tables=state.block_tables[:size], slot_mapping=state.slot_mapping[:size], max_seqlen_q=1,
            max_seqlen_k=self.max_model_len, num_decodes=size, last_rows=self._starts[:size])
        logits = self._model.compute_logits(
            self._model(state.input_ids[:size], state.positions[:size], self._kv_cache, context))
        state.drawn[:size] = self._draw(logits, state.temperatures[:size], state.seeds[:size], state.offsets[:size])
        return logits

    def _draw_again(self, logits: Tensor) -> None:
        """All rows draw, and those without masks draw the same again. -inf is a forbidden token now, and where it was the
        model's own score, the first draw has said so."""
        state, size = self.state, len(logits)
        drawn = state.drawn[:size]
        again = self._draw(logits, state.temperatures[:size], state.seeds[:size], state.offsets[:size], True)
        drawn.copy_(torch.where(drawn < 0, drawn, again))

    def _draw_filtered(self, logits: Tensor) -> None:
        state, size = self.state, len(logits)
        filters = Filters(self._starts[:size], state.top_k[:size, None], state.top_p[:size, None], state.min_p[:size, None])
        self._filtered_draw(logits, state.temperatures[:size], state.seeds[:size], state.offsets[:size], filters,
                            state.drawn[:size])

    def warm_up(self, size: int) -> None:
        """What the graphs of a size hold, not captured: kernels are compiled and loaded now, and cuBLAS makes its choice."""
        logits = self._step(size)
        self._draw_again(logits)
        self._draw_filtered(logits)

    @torch.inference_mode()
    def _capture(self, sizes: list[int]) -> None:
        """The largest first: the smaller ones then fit into its memory. All rows are empty, so no cache is written."""
        pool = None
        for size in reversed(sizes):
            self.warm_up(size)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # others may use the GPU meanwhile
                logits = self._step(size)
            pool = graph.pool()
            self._graphs[size] = graph, logits
            for graphs, draw in ((self._mask_graphs, self._draw_again), (self._filter_graphs, self._draw_filtered)):
                graphs[size] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graphs[size], pool=pool, capture_error_mode="thread_local"):
                    draw(logits)
