"""A step that drafts and checks its drafts, without the host: what stands between the models' forward passes.

The host cannot lay such a step out ahead of time: where it begins is known when the step before it has ended, and what the
draft model sees is what it has just drawn. So each stretch between two forward passes is a few numbers per sequence, computed
on the device, and the whole step is one CUDA graph (`engine.draft_graphs`). `kernels/draft_state.py` does each in one launch.
"""

import torch
from torch import Tensor

from nanovllm.utils.draft_state import DraftState


def settle(state: DraftState, num_rows: int) -> None:
    """Move each row on behind the tokens that its last step accepted, and write them into its text."""
    n, rows = num_rows, state.rows
    cached, accepted, drawn = rows.cached[:n], state.accepted[:n], rows.drawn[:n]
    moves = (cached >= 0) & (accepted >= 0)
    right = accepted.clamp(min=0).long()
    if state.text.shape[1]:
        for i in range(state.most + 1):
            _write_text(state, n, cached + 1 + i, state.tokens[:n, i], moves & (i <= accepted))
    last_draft = state.drafts[:n].gather(1, (right - 1).clamp(min=0)[:, None])[:, 0]
    state.before[:n] = torch.where(moves, torch.where(right > 0, last_draft, drawn.clamp(min=0)), state.before[:n])
    rows.drawn[:n] = torch.where(moves, state.last[:n], drawn)
    rows.cached[:n] = torch.where(moves, cached + 1 + right.int(), cached)
    state.accepted[:n] = -1
    if state.text.shape[1]:
        _write_text(state, n, rows.cached[:n], rows.drawn[:n].clamp(min=0), rows.cached[:n] >= 0)


def first_draft_rows(state: DraftState, num_rows: int, block_size: int) -> None:
    """Lay out the draft model's first pass: each sequence's last token, and the one before it where that was never seen."""
    n, rows = num_rows, state.rows
    cached, drawn, before = rows.cached[:n].long(), rows.drawn[:n].clamp(min=0), state.before[:n]
    live = cached >= 0
    two = live & (before >= 0) & (cached > 0)
    ids, positions, slots = (t[:2 * n].view(n, 2) for t in (state.draft_ids, state.draft_positions, state.draft_slots))
    ids[:, 0], ids[:, 1] = torch.where(two, before, torch.where(live, drawn, 0)), torch.where(live, drawn, 0)
    positions[:, 0], positions[:, 1] = (cached - two.long()).clamp(min=0), cached.clamp(min=0)
    for i, valid in enumerate((live, two)):
        slots[:, i] = torch.where(valid, _slot(rows.block_tables[:n], positions[:, i], block_size), -1)
    query_lens = live.int() + two.int()
    state.draft_query_lens[:n], state.draft_context_lens[:n] = query_lens, torch.where(live, cached + 1, 0).int()
    state.draft_last[:n] = 2 * torch.arange(n, device=live.device) + two
    state.draft_offsets[:n] = cached + 1 - rows.num_prompt_tokens[:n]


def next_draft_rows(state: DraftState, num_rows: int, block_size: int, step: int, guesses: Tensor) -> None:
    """Lay out its pass number `step`, 1 or more: one token of each sequence, guesses [num_rows], where it may have more."""
    n, rows = num_rows, state.rows
    cached = rows.cached[:n].long()
    goes_on = (cached >= 0) & (step <= state.num_drafts[:n])
    position = torch.where(goes_on, cached + step, 0)
    state.draft_ids[:n], state.draft_positions[:n] = torch.where(goes_on, guesses.clamp(min=0), 0), position
    state.draft_slots[:n] = torch.where(goes_on, _slot(rows.block_tables[:n], position, block_size), -1)
    state.draft_context_lens[:n] = torch.where(goes_on, position + 1, 0).int()
    state.draft_offsets[:n] = position + 1 - rows.num_prompt_tokens[:n]


def rows_to_check(state: DraftState, num_rows: int, num_drafts: int, block_size: int) -> None:
    """Lay out the model's step: 1 + num_drafts rows for each sequence, its last token and its drafts behind it.

    Of a sequence with fewer drafts the rows behind those are nobody's: nothing is stored, nobody sees them.
    """
    n, k, rows = num_rows, num_drafts, state.rows
    cached = rows.cached[:n].long()
    live = cached >= 0
    found = torch.minimum(state.found[:n], state.num_drafts[:n]).clamp(0, k)
    state.checked[:n] = found
    ids = torch.cat([rows.drawn[:n, None], state.drafts[:n, :k]], 1).clamp(min=0)
    i = torch.arange(k + 1, device=live.device)
    valid = live[:, None] & (i <= found[:, None])
    position = torch.where(valid, cached[:, None] + i, 0)
    slot = _slot(rows.block_tables[:n], position, block_size)
    stored = valid & (position >= rows.stored_from[:n, None])
    num_tokens = n * (k + 1)
    state.input_ids[:num_tokens] = torch.where(valid, ids, 0).flatten()
    state.positions[:num_tokens], state.slots[:num_tokens] = position.flatten(), torch.where(stored, slot, -1).flatten()
    state.offsets[:num_tokens] = (position + 1 - rows.num_prompt_tokens[:n, None]).flatten()
    for each, one in ((state.seeds, rows.seeds), (state.temperatures, rows.temperatures), (state.top_k, rows.top_k),
                      (state.top_p, rows.top_p), (state.min_p, rows.min_p)):
        each[:num_tokens] = one[:n].repeat_interleave(k + 1)
    state.query_lens[:n] = torch.where(live, 1 + found, 0).int()
    state.context_lens[:n] = torch.where(live, cached + 1 + found, 0).int()


def accept(state: DraftState, num_rows: int, num_drafts: int, drawn: Tensor, result: Tensor) -> None:
    """Compare drafts and draws: the first draft that differs ends what is kept.

    drawn: [num_rows * (1 + num_drafts)] int64. result: [num_rows, 2 + 2 * num_drafts] int64, filled for the host: how many
    drafts there were, the drafts, the tokens drawn. May be called again, with other draws, before the rows move on.
    """
    n, k = num_rows, num_drafts
    tokens, drafts, found = drawn.view(n, k + 1), state.drafts[:n, :k], state.checked[:n]
    right = (drafts == tokens[:, :k]) & (torch.arange(k, device=drawn.device) < found[:, None])
    accepted = right.int().cumprod(1).sum(1)
    state.tokens[:n, :k + 1], state.accepted[:n] = tokens, accepted.int()
    state.last[:n] = tokens.gather(1, accepted[:, None])[:, 0]
    result[:, 0], result[:, 1:k + 1], result[:, k + 1:] = found, drafts, tokens


def look_up(state: DraftState, num_rows: int, num_drafts: int, shortest: int, longest: int) -> None:
    """Prompt lookup: what followed the last earlier occurrence of the longest run that ends the text (see `drafts_ngram`).

    Fills `drafts` and `found`; runs of `longest` down to `shortest` tokens are tried.
    """
    for row in range(num_rows):
        length = int(state.rows.cached[row]) + 1  # the last token's position, and so the text's length, less one
        text = state.text[row, :length].tolist() if length > 0 else []
        end = next((end for n in range(longest, shortest - 1, -1) if n < len(text)
                    for end in range(len(text) - 1, n - 1, -1) if text[end - n:end] == text[-n:]), None)
        state.found[row] = 0 if end is None else num_drafts
        if end is not None:
            period = len(text) - end
            found = [text[end + i % period] for i in range(num_drafts)]
            state.drafts[row, :num_drafts] = torch.tensor(found, dtype=state.drafts.dtype, device=state.drafts.device)


def _slot(tables: Tensor, position: Tensor, block_size: int) -> Tensor:
    """Where positions, [n] or [n, any], of n sequences lie in the cache."""
    wide = position if position.dim() == 2 else position[:, None]
    slot = tables.gather(1, wide // block_size).long() * block_size + wide % block_size
    return slot if position.dim() == 2 else slot[:, 0]


def _write_text(state: DraftState, num_rows: int, position: Tensor, tokens: Tensor, where: Tensor) -> None:
    at = torch.nonzero(where & (position < state.text.shape[1]))[:, 0]
    state.text[at, position[at].long()] = tokens[at].clamp(min=0).int()
