"""The rows of the decode batch, changed and moved on: `layers/row_state.py` in one launch each."""

import triton
import triton.language as tl
from torch import Tensor

from nanovllm.utils.row_state import RECORD, RowState

BLOCK = 128


@triton.jit(do_not_specialize=["num_records", "num_entries"])
def _write_rows_kernel(
    cached_ptr: tl.tensor, stored_from_ptr: tl.tensor, num_prompt_ptr: tl.tensor, seeds_ptr: tl.tensor,
    temperatures_ptr: tl.tensor, top_k_ptr: tl.tensor, top_p_ptr: tl.tensor, min_p_ptr: tl.tensor,
    drawn_ptr: tl.tensor, tables_ptr: tl.tensor, records_ptr: tl.tensor, entries_ptr: tl.tensor, source_ptr: tl.tensor,
    num_records: tl.tensor, num_entries: tl.tensor,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One program takes BLOCK records and BLOCK entries."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, record_ptr = i < num_records, records_ptr + i * WIDTH
    row = tl.load(record_ptr, mask=inside, other=0)
    cached = tl.load(record_ptr + 1, mask=inside, other=0).to(tl.int32)
    tl.store(cached_ptr + row, cached, mask=inside)
    tl.store(stored_from_ptr + row, tl.load(record_ptr + 2, mask=inside, other=0).to(tl.int32), mask=inside)
    tl.store(num_prompt_ptr + row, tl.load(record_ptr + 3, mask=inside, other=0).to(tl.int32), mask=inside)
    tl.store(seeds_ptr + row, tl.load(record_ptr + 4, mask=inside, other=0), mask=inside)
    bits = tl.load(record_ptr + 5, mask=inside, other=0).to(tl.int32)
    tl.store(temperatures_ptr + row, bits.to(tl.float32, bitcast=True), mask=inside)
    tl.store(top_k_ptr + row, tl.load(record_ptr + 6, mask=inside, other=0).to(tl.int32), mask=inside)
    bits = tl.load(record_ptr + 7, mask=inside, other=0).to(tl.int32)
    tl.store(top_p_ptr + row, bits.to(tl.float32, bitcast=True), mask=inside)
    bits = tl.load(record_ptr + 8, mask=inside, other=0).to(tl.int32)
    tl.store(min_p_ptr + row, bits.to(tl.float32, bitcast=True), mask=inside)
    token = tl.load(record_ptr + 9, mask=inside, other=0)
    pending = inside & (token < 0)
    token = tl.where(pending, tl.load(source_ptr + (-1 - token), mask=pending, other=0), token)
    tl.store(drawn_ptr + row, token, mask=inside & (cached >= 0))

    inside = i < num_entries
    index = tl.load(entries_ptr + 2 * i, mask=inside, other=0)
    tl.store(tables_ptr + index, tl.load(entries_ptr + 2 * i + 1, mask=inside, other=0).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "table_stride"])
def _advance_kernel(
    input_ids_ptr: tl.tensor, positions_ptr: tl.tensor, slots_ptr: tl.tensor, offsets_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    cached_ptr: tl.tensor, stored_from_ptr: tl.tensor, num_prompt_ptr: tl.tensor, drawn_ptr: tl.tensor, tables_ptr: tl.tensor,
    table_stride: tl.tensor, num_rows: tl.tensor,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One program takes BLOCK rows."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    cached = tl.load(cached_ptr + row, mask=inside, other=-1)
    live, position = cached >= 0, tl.maximum(cached, 0)
    block = tl.load(tables_ptr + row.to(tl.int64) * table_stride + position // BLOCK_SIZE, mask=live, other=0)
    slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    stored = live & (cached >= tl.load(stored_from_ptr + row, mask=inside, other=0))
    tl.store(input_ids_ptr + row, tl.maximum(tl.load(drawn_ptr + row, mask=live, other=0), 0), mask=inside)
    tl.store(positions_ptr + row, position.to(tl.int64), mask=inside)
    tl.store(slots_ptr + row, tl.where(stored, slot, -1), mask=inside)
    offset = position + 1 - tl.load(num_prompt_ptr + row, mask=inside, other=0)
    tl.store(offsets_ptr + row, offset.to(tl.int64), mask=inside)
    tl.store(context_lens_ptr + row, cached + 1, mask=inside)
    tl.store(cached_ptr + row, cached + live.to(tl.int32), mask=inside)


def write_rows(state: RowState, records: Tensor, entries: Tensor, drawn: Tensor) -> None:
    """As `layers.row_state.write_rows`."""
    num_programs = triton.cdiv(max(len(records), len(entries)), BLOCK)
    _write_rows_kernel[(num_programs,)](
        state.cached, state.stored_from, state.num_prompt_tokens, state.seeds, state.temperatures, state.top_k,
        state.top_p, state.min_p, state.drawn, state.block_tables, records, entries, drawn, len(records), len(entries),
        WIDTH=len(RECORD), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def advance(state: RowState, num_rows: int, block_size: int) -> None:
    """As `layers.row_state.advance`."""
    _advance_kernel[(triton.cdiv(num_rows, BLOCK),)](
        state.input_ids, state.positions, state.slot_mapping, state.offsets, state.context_lens, state.cached,
        state.stored_from, state.num_prompt_tokens, state.drawn, state.block_tables, state.block_tables.stride(0), num_rows,
        BLOCK_SIZE=block_size, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
