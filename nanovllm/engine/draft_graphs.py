"""A step that drafts and checks its drafts as one launch, whose outcome the host reads a step later.

Drafted by the host, a step is a chain of small ones: guess, look, guess again, check, look, count. A small model's passes are
shorter than the looks between them. Here the whole chain is one CUDA graph: the drafter proposes, the model checks
1 + k tokens of each sequence, and the comparison decides where each sequence stands. The next step begins from there on the
device, so the host schedules it before it knows: it counts on the most tokens that may come, and learns how many came later.
"""

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from nanovllm.engine.cuda_graphs import RowKernels, batch_sizes
from nanovllm.engine.decode_rows import NO_FILTERS, RECORD_SIZE, DecodeRows
from nanovllm.engine.device_drafters import DeviceDrafter, filters_of
from nanovllm.engine.launched import Drawn, Launched
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.step_inputs import to_device
from nanovllm.layers.sampler import Draw, FilteredDraw
from nanovllm.models.causal_lm import CausalLM
from nanovllm.utils.context import Context
from nanovllm.utils.draft_state import DraftState


class LaunchedDrafts(Launched):
    """A step in flight, its result on its way. result: [num_rows, 2 + 2 * num_drafts] int64, see `layers.draft_state.accept`.

    rows: where each item of the batch stands.
    """

    def __init__(self, batch: ScheduledBatch, result: Tensor, rows: list[int]):
        super().__init__(batch, partial(Drawn, result, []))
        self._rows = rows
        self.draw()

    def wait(self) -> list[int]:
        """The tokens drawn, in the batch's order, once they are here. Each item is told its drafts, of which it knew the
        number, or the most there may be."""
        result = self.arrived().token_ids.tolist()
        num_drafts = len(result[0]) // 2 - 1
        tokens: list[int] = []
        for item, row in zip(self.batch.items, self._rows):
            found, drafts, drawn = result[row][0], result[row][1:num_drafts + 1], result[row][num_drafts + 1:]
            item.draft_token_ids, item.num_tokens = drafts[:found], 1 + found
            tokens += drawn[:1 + found]
        return tokens


class DraftGraphs:
    """Runs such steps: every sequence decodes, and draws from its logits alone (`SamplingParams.draws_from_logits`).

    Owns the rows, on the device and in the host's picture, and a graph for each of a few batch sizes and numbers of drafts,
    with filters and without. A row stays its sequence's until the sequence runs elsewhere; where it stands only the device
    knows while a step is in flight. Weights and caches are others', and must stay where they are.

    most: drafts of a sequence. max_rows: sequences. capture: False runs the same step without graphs, on any device.
    """

    def __init__(self, model: CausalLM, draw: Draw, filtered_draw: FilteredDraw, row_kernels: RowKernels,
                 kernels: ModuleType, kv_cache: Tensor, drafter: DeviceDrafter, *, most: int, max_rows: int,
                 max_model_len: int, capture: bool = True):
        self.block_size, self.max_model_len, self.most = kv_cache.shape[3], max_model_len, most
        self.max_blocks = -(-max_model_len // self.block_size)
        self.sizes, self.lengths = batch_sizes(max_rows), sorted({max(1, most // 2), most})
        self.state = DraftState.empty(max_rows, most, max_model_len, self.block_size, kv_cache.device, drafter.reads_text)
        self._model, self._draw, self._filtered_draw, self._kv_cache = model, draw, filtered_draw, kv_cache
        self._row_kernels, self._kernels, self.drafter = row_kernels, kernels, drafter
        self.max_rows = max_rows
        self._starts = torch.arange(max_rows * (most + 1) + 1, dtype=torch.int32, device=kv_cache.device)
        self._results = {length: torch.zeros(max_rows, 2 + 2 * length, dtype=torch.int64, device=kv_cache.device)
                         for length in self.lengths}
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self.reset()
        if capture:
            self._capture()

    def reset(self) -> None:
        """Take every row from its sequence: whoever comes next is written anew."""
        self.row_of: dict[int, int] = {}
        self._last: dict[int, ScheduledSequence] = {}
        self._tables: list[list[int]] = [[] for _ in range(self.sizes[-1])]  # as the device's rows have them
        self._stale = set(range(self.sizes[-1]))  # rows that nobody has, and the device may think somebody had
        self._limits = np.full(self.sizes[-1], -1, np.int32)

    def invalidate(self) -> None:
        """The sequences ran elsewhere: every row will be written anew."""
        self._last.clear()

    def knows(self, seq: Sequence) -> bool:
        """Whether a row of the device stands where the sequence does, so that nothing need be written for its next step."""
        last = self._last.get(seq.seq_id)
        if last is None:
            return False
        return seq.num_pending_tokens > 0 or last.start + 1 + (last.num_accepted or 0) == seq.num_computed_tokens

    def launch(self, batch: ScheduledBatch, drawn: Tensor | None, drawn_by: dict[int, int]) -> LaunchedDrafts:
        """Enqueue a step. drawn, drawn_by: see `DecodeGraphs.launch`; afterwards tokens stand in `state.last`, by `row_of`."""
        items = batch.items
        size, length = self._assign(items, drawn, drawn_by)
        filtered = any(item.seq.sampling_params.filtered for item in items)
        if (size, length, filtered) in self._graphs:
            self._graphs[size, length, filtered].replay()
        else:
            self._step(size, length, filtered)
        return LaunchedDrafts(batch, self._results[length][:size], [self.row_of[item.seq.seq_id] for item in items])

    def _assign(self, items: list[ScheduledSequence], drawn: Tensor | None, drawn_by: dict[int, int]) -> tuple[int, int]:
        """Give each item its row, and write what the device does not know; returns (batch size, number of drafts)."""
        known = {item.seq.seq_id for item in items if self.knows(item.seq)}
        for seq_id in [seq_id for seq_id in self.row_of if seq_id not in known]:
            self._stale.add(self.row_of.pop(seq_id))
        taken = set(self.row_of.values())
        empty = iter([row for row in range(len(items)) if row not in taken])
        self._move(items, len(items), empty)
        records: list[tuple[int, ...]] = []
        entries: list[tuple[int, int]] = []
        fresh, texts = [], []
        for item in items:
            seq = item.seq
            row = self.row_of.get(seq.seq_id, -1)
            if row < 0:
                row = self.row_of[seq.seq_id] = next(empty)
                self._tables[row] = []
                self._stale.discard(row)
                records.append(DecodeRows.record(row, item, drawn_by))
                fresh.append(row)
                texts += [seq] if self.drafter.reads_text else []
            # Blocks behind the text go back when drafts are refused, and others may come in their place.
            if (table := self._tables[row]) != seq.block_table:
                same = next((i for i, (had, has) in enumerate(zip(table, seq.block_table)) if had != has),
                            min(len(table), len(seq.block_table)))
                entries += enumerate(seq.block_table[same:], row * self.max_blocks + same)
                self._tables[row] = list(seq.block_table)
        self._last = {item.seq.seq_id: item for item in items}
        size = next(size for size in self.sizes if size >= len(items))
        stale = [row for row in self._stale if row < size]
        self._stale.difference_update(stale)
        records += [(row, -1, 0, 0, 0, 0, *NO_FILTERS, 0) for row in stale]
        limits = np.zeros(size, np.int32)
        limits[[self.row_of[item.seq.seq_id] for item in items]] = [item.num_drafts for item in items]
        self._write(records, entries, fresh, texts, limits, drawn)
        most = int(limits.max())
        return size, next(length for length in self.lengths if length >= most)

    def _move(self, items: list[ScheduledSequence], num_rows: int, empty: Iterator[int]) -> None:
        """Sequences in rows behind the first num_rows go to empty ones before. Only the device knows where they stand."""
        moving = [item.seq.seq_id for item in items if self.row_of.get(item.seq.seq_id, -1) >= num_rows]
        if not moving:
            return
        sources = [self.row_of[seq_id] for seq_id in moving]
        targets = [next(empty) for _ in moving]
        to, of = to_device([np.array(targets), np.array(sources)], self._kv_cache.device)
        state, rows = self.state, self.state.rows
        for tensor in (rows.cached, rows.stored_from, rows.num_prompt_tokens, rows.seeds, rows.temperatures, rows.top_k,
                       rows.top_p, rows.min_p, rows.drawn, rows.block_tables, state.num_drafts, state.drafts, state.before,
                       state.tokens, state.accepted, state.last, state.text):
            tensor[to] = tensor[of]
        for seq_id, source, target in zip(moving, sources, targets):
            self.row_of[seq_id], self._tables[target] = target, self._tables[source]
            self._stale.discard(target)
            self._stale.add(source)

    def _write(self, records: list[tuple[int, ...]], entries: list[tuple[int, int]], fresh: list[int], texts: list[Sequence],
               limits: np.ndarray, drawn: Tensor | None) -> None:
        state, size = self.state, len(limits)
        changed = not np.array_equal(limits, self._limits[:size])
        if not (records or entries or changed):
            return
        self._limits[:size] = limits
        arrays = [np.array(records, np.int64).reshape(-1, RECORD_SIZE), np.array(entries, np.int64).reshape(-1, 2), limits,
                  np.array(fresh, np.int64), *(np.array(seq.token_ids, np.int32) for seq in texts)]
        sent = to_device(arrays, self._kv_cache.device)
        if records or entries:
            self._row_kernels.write_rows(state.rows, sent[0], sent[1], state.last if drawn is None else drawn)
        state.num_drafts[:size] = sent[2]
        if fresh:
            state.accepted[sent[3]] = -1
            state.before[sent[3]] = -1
        for seq, tokens in zip(texts, sent[4:]):
            state.text[self.row_of[seq.seq_id], :len(tokens)] = tokens

    def _step(self, size: int, length: int, filtered: bool) -> None:
        """What a graph holds."""
        state, kernels, num_tokens = self.state, self._kernels, size * (length + 1)
        kernels.settle(state, size)
        self.drafter.propose(kernels, state, size, length, filtered)
        kernels.rows_to_check(state, size, length, self.block_size)
        context = Context(
            cu_seqlens_q=self._starts[:num_tokens + 1:length + 1], context_lens=state.context_lens[:size],
            block_tables=state.rows.block_tables[:size], slot_mapping=state.slots[:num_tokens], max_seqlen_q=length + 1,
            max_seqlen_k=self.max_model_len, num_decodes=size, last_rows=self._starts[:num_tokens],
            query_lens=state.query_lens[:size])
        logits = self._model.compute_logits(
            self._model(state.input_ids[:num_tokens], state.positions[:num_tokens], self._kv_cache, context))
        temperatures, seeds, offsets = state.temperatures[:num_tokens], state.seeds[:num_tokens], state.offsets[:num_tokens]
        drawn = self._draw(logits, temperatures, seeds, offsets)
        if filtered:
            self._filtered_draw(logits, temperatures, seeds, offsets, filters_of(state, self._starts[:num_tokens]), drawn)
        kernels.accept(state, size, length, drawn, self._results[length][:size])

    @torch.inference_mode()
    def _capture(self) -> None:
        """The largest first: the others fit into its memory. All rows are empty, so no cache is written."""
        pool = None
        for size in reversed(self.sizes):
            for length in reversed(self.lengths):
                for filtered in (True, False):
                    self._step(size, length, filtered)  # not captured: kernels are compiled and loaded now
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                        self._step(size, length, filtered)
                    pool = graph.pool()
                    self._graphs[size, length, filtered] = graph
