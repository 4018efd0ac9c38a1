"""What stands between the forward passes of a drafting step: `layers/draft_state.py` in one launch each."""

import triton
import triton.language as tl
from torch import Tensor

from nanovllm.utils.draft_state import DraftState

BLOCK = 32  # rows of a program


@triton.jit
def _slot(tables_ptr: tl.tensor, row: tl.tensor, position: tl.tensor, table_stride: tl.tensor, valid: tl.tensor,
          BLOCK_SIZE: tl.constexpr) -> tl.tensor:
    """Where positions of rows lie in the cache; -1 where not valid."""
    block = tl.load(tables_ptr + row.to(tl.int64) * table_stride + position // BLOCK_SIZE, mask=valid, other=0)
    return tl.where(valid, block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE, -1)


@triton.jit(do_not_specialize=["num_rows"])
def _settle_kernel(
    cached_ptr: tl.tensor, drawn_ptr: tl.tensor, before_ptr: tl.tensor, accepted_ptr: tl.tensor, last_ptr: tl.tensor,
    drafts_ptr: tl.tensor, tokens_ptr: tl.tensor, text_ptr: tl.tensor, num_rows: tl.tensor,
    MOST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    cached = tl.load(cached_ptr + row, mask=inside, other=-1)
    accepted = tl.load(accepted_ptr + row, mask=inside, other=-1)
    moves = (cached >= 0) & (accepted >= 0)
    drawn = tl.load(drawn_ptr + row, mask=inside, other=0)
    wide = row.to(tl.int64)
    if WIDTH > 0:
        for i in tl.static_range(MOST + 1):
            token = tl.load(tokens_ptr + wide * (MOST + 1) + i, mask=moves & (i <= accepted), other=0)
            place = cached + 1 + i
            tl.store(text_ptr + wide * WIDTH + place, tl.maximum(token, 0).to(tl.int32),
                     mask=moves & (i <= accepted) & (place < WIDTH))  # fmt: skip
    draft = tl.load(drafts_ptr + wide * MOST + accepted - 1, mask=moves & (accepted > 0), other=0)
    tl.store(before_ptr + row, tl.where(accepted > 0, draft, tl.maximum(drawn, 0)), mask=moves)
    drawn = tl.where(moves, tl.load(last_ptr + row, mask=moves, other=0), drawn)
    cached = tl.where(moves, cached + 1 + accepted, cached)
    tl.store(drawn_ptr + row, drawn, mask=moves)
    tl.store(cached_ptr + row, cached, mask=moves)
    tl.store(accepted_ptr + row, -1, mask=inside)
    if WIDTH > 0:
        tl.store(text_ptr + wide * WIDTH + cached, tl.maximum(drawn, 0).to(tl.int32), mask=(cached >= 0) & (cached < WIDTH))


@triton.jit(do_not_specialize=["num_rows", "table_stride"])
def _first_draft_kernel(
    ids_ptr: tl.tensor, positions_ptr: tl.tensor, slots_ptr: tl.tensor, offsets_ptr: tl.tensor, last_rows_ptr: tl.tensor,
    context_lens_ptr: tl.tensor, query_lens_ptr: tl.tensor,
    cached_ptr: tl.tensor, drawn_ptr: tl.tensor, before_ptr: tl.tensor, num_prompt_ptr: tl.tensor, tables_ptr: tl.tensor,
    table_stride: tl.tensor, num_rows: tl.tensor,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    cached = tl.load(cached_ptr + row, mask=inside, other=-1)
    live = cached >= 0
    drawn = tl.where(live, tl.maximum(tl.load(drawn_ptr + row, mask=inside, other=0), 0), 0)
    before = tl.load(before_ptr + row, mask=inside, other=-1)
    two = live & (before >= 0) & (cached > 0)
    many = two.to(tl.int32)
    position = tl.maximum(cached - many, 0)
    tl.store(ids_ptr + 2 * row, tl.where(two, before, drawn), mask=inside)
    tl.store(ids_ptr + 2 * row + 1, drawn, mask=inside)
    tl.store(positions_ptr + 2 * row, position.to(tl.int64), mask=inside)
    tl.store(positions_ptr + 2 * row + 1, tl.maximum(cached, 0).to(tl.int64), mask=inside)
    tl.store(slots_ptr + 2 * row, _slot(tables_ptr, row, position, table_stride, live, BLOCK_SIZE), mask=inside)
    tl.store(slots_ptr + 2 * row + 1, _slot(tables_ptr, row, cached, table_stride, two, BLOCK_SIZE), mask=inside)
    tl.store(query_lens_ptr + row, live.to(tl.int32) + many, mask=inside)
    tl.store(context_lens_ptr + row, cached + 1, mask=inside)
    tl.store(last_rows_ptr + row, (2 * row + many).to(tl.int64), mask=inside)
    offset = cached + 1 - tl.load(num_prompt_ptr + row, mask=inside, other=0)
    tl.store(offsets_ptr + row, offset.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "table_stride", "step"])
def _next_draft_kernel(
    ids_ptr: tl.tensor, positions_ptr: tl.tensor, slots_ptr: tl.tensor, offsets_ptr: tl.tensor, context_lens_ptr: tl.tensor,
    cached_ptr: tl.tensor, num_drafts_ptr: tl.tensor, guesses_ptr: tl.tensor, num_prompt_ptr: tl.tensor, tables_ptr: tl.tensor,
    table_stride: tl.tensor, step: tl.tensor, num_rows: tl.tensor,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    cached = tl.load(cached_ptr + row, mask=inside, other=-1)
    goes_on = (cached >= 0) & (step <= tl.load(num_drafts_ptr + row, mask=inside, other=0))
    position = tl.where(goes_on, cached + step, 0)
    guess = tl.load(guesses_ptr + row, mask=goes_on, other=0)
    tl.store(ids_ptr + row, tl.maximum(guess, 0), mask=inside)
    tl.store(positions_ptr + row, position.to(tl.int64), mask=inside)
    tl.store(slots_ptr + row, _slot(tables_ptr, row, position, table_stride, goes_on, BLOCK_SIZE), mask=inside)
    tl.store(context_lens_ptr + row, tl.where(goes_on, position + 1, 0), mask=inside)
    offset = position + 1 - tl.load(num_prompt_ptr + row, mask=inside, other=0)
    tl.store(offsets_ptr + row, offset.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "table_stride"])
def _rows_to_check_kernel(
    ids_ptr: tl.tensor, positions_ptr: tl.tensor, slots_ptr: tl.tensor, offsets_ptr: tl.tensor, seeds_ptr: tl.tensor,
    temperatures_ptr: tl.tensor, top_k_ptr: tl.tensor, top_p_ptr: tl.tensor, min_p_ptr: tl.tensor,
    context_lens_ptr: tl.tensor, query_lens_ptr: tl.tensor, clamped_ptr: tl.tensor, cached_ptr: tl.tensor,
    stored_from_ptr: tl.tensor, num_prompt_ptr: tl.tensor, row_seeds_ptr: tl.tensor,
    row_temperatures_ptr: tl.tensor, row_top_k_ptr: tl.tensor, row_top_p_ptr: tl.tensor, row_min_p_ptr: tl.tensor,
    drawn_ptr: tl.tensor, found_ptr: tl.tensor, num_drafts_ptr: tl.tensor, drafts_ptr: tl.tensor,
    tables_ptr: tl.tensor, table_stride: tl.tensor, num_tokens: tl.tensor,
    QUERIES: tl.constexpr, MOST: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One program takes BLOCK tokens; QUERIES of them are a sequence's."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    row, i = token // QUERIES, token % QUERIES
    cached = tl.load(cached_ptr + row, mask=inside, other=-1)
    live = cached >= 0
    found = tl.minimum(tl.load(found_ptr + row, mask=inside, other=0), tl.load(num_drafts_ptr + row, mask=inside, other=0))
    found = tl.minimum(tl.maximum(found, 0), QUERIES - 1)
    valid = live & (i <= found)
    drawn = tl.load(drawn_ptr + row, mask=inside, other=0)
    draft = tl.load(drafts_ptr + row * MOST + i - 1, mask=valid & (i > 0), other=0)
    tl.store(ids_ptr + token, tl.where(valid, tl.maximum(tl.where(i > 0, draft, drawn), 0), 0), mask=inside)
    position = tl.where(valid, cached + i, 0)
    stored = valid & (position >= tl.load(stored_from_ptr + row, mask=inside, other=0))
    tl.store(positions_ptr + token, position.to(tl.int64), mask=inside)
    tl.store(slots_ptr + token, _slot(tables_ptr, row, position, table_stride, stored, BLOCK_SIZE), mask=inside)
    offset = position + 1 - tl.load(num_prompt_ptr + row, mask=inside, other=0)
    tl.store(offsets_ptr + token, offset.to(tl.int64), mask=inside)
    tl.store(seeds_ptr + token, tl.load(row_seeds_ptr + row, mask=inside, other=0), mask=inside)
    tl.store(temperatures_ptr + token, tl.load(row_temperatures_ptr + row, mask=inside, other=0), mask=inside)
    tl.store(top_k_ptr + token, tl.load(row_top_k_ptr + row, mask=inside, other=0), mask=inside)
    tl.store(top_p_ptr + token, tl.load(row_top_p_ptr + row, mask=inside, other=0), mask=inside)
    tl.store(min_p_ptr + token, tl.load(row_min_p_ptr + row, mask=inside, other=0), mask=inside)
    first = inside & (i == 0)
    tl.store(clamped_ptr + row, found, mask=first)
    tl.store(query_lens_ptr + row, tl.where(live, 1 + found, 0), mask=first)
    tl.store(context_lens_ptr + row, tl.where(live, cached + 1 + found, 0), mask=first)


@triton.jit(do_not_specialize=["num_rows"])
def _accept_kernel(
    tokens_ptr: tl.tensor, accepted_ptr: tl.tensor, last_ptr: tl.tensor, result_ptr: tl.tensor, drawn_ptr: tl.tensor,
    drafts_ptr: tl.tensor, found_ptr: tl.tensor, num_rows: tl.tensor,
    K: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    found = tl.load(found_ptr + row, mask=inside, other=0)
    result = result_ptr + row * (2 + 2 * K)
    tl.store(result, found.to(tl.int64), mask=inside)
    accepted, goes_on = tl.zeros([BLOCK], tl.int32), inside
    last = tl.load(drawn_ptr + row * (K + 1), mask=inside, other=0)
    for i in tl.static_range(K + 1):
        token = tl.load(drawn_ptr + row * (K + 1) + i, mask=inside, other=0)
        tl.store(tokens_ptr + row * (MOST + 1) + i, token, mask=inside)
        tl.store(result + 1 + K + i, token, mask=inside)
        last = tl.where(goes_on, token, last)  # behind the drafts so far, which were all right
        if i < K:
            draft = tl.load(drafts_ptr + row * MOST + i, mask=inside, other=0)
            tl.store(result + 1 + i, draft, mask=inside)
            goes_on &= (i < found) & (draft == token)
            accepted += goes_on.to(tl.int32)
    tl.store(accepted_ptr + row, accepted, mask=inside)
    tl.store(last_ptr + row, last, mask=inside)


@triton.jit
def _look_up_kernel(
    drafts_ptr: tl.tensor, found_ptr: tl.tensor, text_ptr: tl.tensor, cached_ptr: tl.tensor, WIDTH: tl.constexpr,
    MOST: tl.constexpr, K: tl.constexpr,
    SHORTEST: tl.constexpr, LONGEST: tl.constexpr, TILE: tl.constexpr, DRAFTS: tl.constexpr,
) -> None:  # fmt: skip
    """Program (row): every place where a run may have ended is looked at, and the longest run wins, of those the last."""
    row = tl.program_id(0)
    length = tl.load(cached_ptr + row) + 1
    text = text_ptr + row.to(tl.int64) * WIDTH
    best = tl.zeros([TILE], tl.int64)  # length of the run, and behind it where it ended
    for start in range(0, length, TILE):
        end = start + tl.arange(0, TILE)  # behind the run's last token
        same, run = end < length, tl.zeros([TILE], tl.int32)
        for i in tl.static_range(LONGEST):
            here = tl.load(text + end - 1 - i, mask=same & (end - 1 - i >= 0), other=-1)
            mine = tl.load(text + tl.maximum(length - 1 - i, 0))
            same &= here == mine
            run += same.to(tl.int32)
        best = tl.maximum(best, tl.where(run >= SHORTEST, (run.to(tl.int64) << 32) + end, 0))
    most = tl.max(best, 0)
    found, end = most > 0, (most & 0xFFFFFFFF).to(tl.int32)
    draft, num_found = tl.arange(0, DRAFTS), tl.where(found, K, 0)
    period = tl.maximum(length - end, 1)  # a text that goes round in circles is shorter than the guess
    token = tl.load(text + end + draft % period, mask=draft < num_found, other=0)
    tl.store(drafts_ptr + row.to(tl.int64) * MOST + draft, token.to(tl.int64), mask=draft < num_found)
    tl.store(found_ptr + row, num_found)


def settle(state: DraftState, num_rows: int) -> None:
    """As `layers.draft_state.settle`."""
    rows = state.rows
    _settle_kernel[(triton.cdiv(num_rows, BLOCK),)](
        rows.cached, rows.drawn, state.before, state.accepted, state.last, state.drafts, state.tokens, state.text, num_rows,
        MOST=state.most, WIDTH=state.text.shape[1], BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip


def first_draft_rows(state: DraftState, num_rows: int, block_size: int) -> None:
    """As `layers.draft_state.first_draft_rows`."""
    rows = state.rows
    _first_draft_kernel[(triton.cdiv(num_rows, BLOCK),)](
        state.draft_ids, state.draft_positions, state.draft_slots, state.draft_offsets, state.draft_last,
        state.draft_context_lens, state.draft_query_lens, rows.cached, rows.drawn, state.before, rows.num_prompt_tokens,
        rows.block_tables, rows.block_tables.stride(0), num_rows, BLOCK_SIZE=block_size, BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip


def next_draft_rows(state: DraftState, num_rows: int, block_size: int, step: int, guesses: Tensor) -> None:
    """As `layers.draft_state.next_draft_rows`."""
    rows = state.rows
    _next_draft_kernel[(triton.cdiv(num_rows, BLOCK),)](
        state.draft_ids, state.draft_positions, state.draft_slots, state.draft_offsets, state.draft_context_lens,
        rows.cached, state.num_drafts, guesses, rows.num_prompt_tokens, rows.block_tables, rows.block_tables.stride(0), step,
        num_rows, BLOCK_SIZE=block_size, BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip


def rows_to_check(state: DraftState, num_rows: int, num_drafts: int, block_size: int) -> None:
    """As `layers.draft_state.rows_to_check`."""
    rows, num_tokens = state.rows, num_rows * (num_drafts + 1)
    _rows_to_check_kernel[(triton.cdiv(num_tokens, BLOCK),)](
        state.input_ids, state.positions, state.slots, state.offsets, state.seeds, state.temperatures, state.top_k,
        state.top_p, state.min_p, state.context_lens, state.query_lens, state.checked, rows.cached, rows.stored_from,
        rows.num_prompt_tokens, rows.seeds, rows.temperatures, rows.top_k, rows.top_p, rows.min_p, rows.drawn, state.found,
        state.num_drafts, state.drafts, rows.block_tables, rows.block_tables.stride(0), num_tokens,
        QUERIES=num_drafts + 1, MOST=state.most, BLOCK_SIZE=block_size, BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip


def accept(state: DraftState, num_rows: int, num_drafts: int, drawn: Tensor, result: Tensor) -> None:
    """As `layers.draft_state.accept`."""
    _accept_kernel[(triton.cdiv(num_rows, BLOCK),)](
        state.tokens, state.accepted, state.last, result, drawn, state.drafts, state.checked, num_rows,
        K=num_drafts, MOST=state.most, BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip


def look_up(state: DraftState, num_rows: int, num_drafts: int, shortest: int, longest: int) -> None:
    """As `layers.draft_state.look_up`."""
    _look_up_kernel[(num_rows,)](
        state.drafts, state.found, state.text, state.rows.cached, WIDTH=state.text.shape[1], MOST=state.most, K=num_drafts,
        SHORTEST=shortest, LONGEST=longest, TILE=1024, DRAFTS=triton.next_power_of_2(num_drafts), num_warps=4,
    )  # fmt: skip
