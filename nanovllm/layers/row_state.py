"""The decode batch on the device: a row for each running sequence, which one launch advances to the next step.

A decode step differs from the one before it in little: every row is one position further, its input is the token it has
just drawn, and now and then a row begins a new block. None of that needs the host, so the rows stay on the device.
`advance` takes all rows one step further. `write_rows` sets those few for which that is not enough: a sequence that was
added, removed or moved to another row, or that got a block. `kernels/row_state.py` does the same in one launch each.
"""

import torch
from torch import Tensor

from nanovllm.utils.row_state import RowState


def write_rows(state: RowState, records: Tensor, entries: Tensor, drawn: Tensor) -> None:
    """Set whole rows and single entries of block tables.

    records: [num_records, len(RECORD)] int64, no row twice; temperature, top_p and min_p are there as their float32 bits,
    and a token below 0 is the one at -1 - token of `drawn`, [anything] int64, because the host may not know it yet. A
    record that empties its row (num_cached_tokens -1) leaves its token, which another may be just about to read. entries:
    [num_entries, 2] int64, a place in the flattened block tables and the block to put there.
    """
    row, cached, stored_from, num_prompt_tokens, seed, temperature, top_k, top_p, min_p, token = records.unbind(1)
    state.cached[row], state.stored_from[row] = cached.int(), stored_from.int()
    state.num_prompt_tokens[row], state.seeds[row] = num_prompt_tokens.int(), seed
    state.top_k[row] = top_k.int()
    for numbers, bits in ((state.temperatures, temperature), (state.top_p, top_p), (state.min_p, min_p)):
        numbers[row] = bits.int().view(torch.float32)
    pending, filled = token < 0, cached >= 0
    token = token.masked_scatter(pending, drawn[-1 - token[pending]])
    state.drawn[row[filled]] = token[filled]
    state.block_tables.view(-1)[entries[:, 0]] = entries[:, 1].int()


def advance(state: RowState, num_rows: int, block_size: int) -> None:
    """Lay out the next step of the first num_rows rows, one token each.

    A row that has drawn no token (below 0, see `layers.sampler`) runs with token 0. Its request has ended, and the result is
    dropped.
    """
    cached, drawn = state.cached[:num_rows], state.drawn[:num_rows]
    live, position = cached >= 0, cached.clamp(min=0).long()
    block = state.block_tables[:num_rows].gather(1, position[:, None] // block_size)[:, 0]
    slot = block.long() * block_size + position % block_size
    stored = live & (cached >= state.stored_from[:num_rows])
    state.input_ids[:num_rows] = torch.where(live, drawn.clamp(min=0), 0)
    state.positions[:num_rows] = position
    state.slot_mapping[:num_rows] = torch.where(stored, slot, -1)
    state.offsets[:num_rows] = position + 1 - state.num_prompt_tokens[:num_rows]
    state.context_lens[:num_rows] = cached + 1
    state.cached[:num_rows] = cached + live
