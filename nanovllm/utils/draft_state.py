"""What a step that drafts and checks its drafts keeps on the device. `layers/draft_state.py` computes with it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanovllm.utils.row_state import RowState


@dataclass(slots=True)
class DraftState:
    """One entry per sequence in the first two groups; `most` is the most drafts of a sequence.

    rows: where each sequence stands: `cached`, `drawn`, seed, temperature, filters, block table. Its other arrays are not used.
    num_drafts: [num_rows] int32, how many drafts the host has room for. found: how many the drafter made; checked: the less
        of the two.
    drafts: [num_rows, most] int64. before: [num_rows] int64, the token ahead of `drawn`, where the draft model has not seen it;
        -1 where it has.
    tokens: [num_rows, most + 1] int64, drawn last, one for each position checked. accepted: [num_rows] int32, how many of the
        drafts were right; -1 once the row has moved on behind them. last: [num_rows] int64, the token drawn behind those.
    text: [num_rows, max_model_len] int32, for a drafter that looks things up in it; of length 0 for others.

    The draft model's step, up to two tokens for each sequence, and that of the model, 1 + most: input_ids, positions, slots
    [num_tokens] int64, context_lens, query_lens [num_rows] int32. draft_last: [num_rows] int64, rows of the last tokens.
    draft_offsets: [num_rows] int64. offsets, seeds: [num_tokens] int64, and temperatures and filters as `RowState` has them.
    """

    rows: RowState
    num_drafts: Tensor
    found: Tensor
    checked: Tensor
    drafts: Tensor
    before: Tensor
    tokens: Tensor
    accepted: Tensor
    last: Tensor
    text: Tensor
    draft_ids: Tensor
    draft_positions: Tensor
    draft_slots: Tensor
    draft_offsets: Tensor
    draft_last: Tensor
    draft_context_lens: Tensor
    draft_query_lens: Tensor
    input_ids: Tensor
    positions: Tensor
    slots: Tensor
    offsets: Tensor
    seeds: Tensor
    temperatures: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    context_lens: Tensor
    query_lens: Tensor

    @classmethod
    def empty(cls, num_rows: int, most: int, max_model_len: int, block_size: int, device: torch.device | str,
              with_text: bool = False) -> "DraftState":
        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        n, narrow, wide, real = num_rows, torch.int32, torch.int64, torch.float32
        checked = n * (most + 1)
        return cls(
            RowState.empty(n, -(-max_model_len // block_size), device), zeros(narrow, n), zeros(narrow, n), zeros(narrow, n),
            zeros(wide, n, most),
            zeros(wide, n) - 1, zeros(wide, n, most + 1), zeros(narrow, n) - 1, zeros(wide, n),
            zeros(narrow, n, max_model_len if with_text else 0),
            zeros(wide, 2 * n), zeros(wide, 2 * n), zeros(wide, 2 * n) - 1, zeros(wide, n), zeros(wide, n), zeros(narrow, n),
            zeros(narrow, n),
            zeros(wide, checked), zeros(wide, checked), zeros(wide, checked) - 1, zeros(wide, checked), zeros(wide, checked),
            zeros(real, checked), zeros(narrow, checked), zeros(real, checked), zeros(real, checked),
            zeros(narrow, n), zeros(narrow, n))

    @property
    def most(self) -> int:
        return self.drafts.shape[1]
