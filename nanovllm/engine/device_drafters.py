"""Drafters whose guesses never leave the device: the part of a drafting step that proposes, for `draft_graphs` to capture."""

from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from nanovllm.layers.sampler import Draw, FilteredDraw
from nanovllm.models.causal_lm import CausalLM
from nanovllm.utils.context import Context
from nanovllm.utils.draft_state import DraftState
from nanovllm.utils.filters import Filters
from nanovllm.utils.row_state import RowState


class DeviceDrafter(Protocol):
    """What `Drafter.on_device` returns. reads_text: whether it looks at `DraftState.text`, which is only then kept."""

    reads_text: bool

    def propose(self, kernels: ModuleType, state: DraftState, num_rows: int, num_drafts: int, filtered: bool) -> None:
        """Fill `drafts` and `found` of the first num_rows rows, without a look at any number on the host.

        kernels: `layers.draft_state`, or its twin in `kernels`. filtered: whether some row has filters.
        """


class LookUp:
    """`NgramDrafter` on the device. It keeps no index: a search of the whole text takes a GPU a few microseconds."""

    reads_text = True

    def __init__(self, shortest: int, longest: int):
        self.shortest, self.longest = shortest, longest

    def propose(self, kernels: ModuleType, state: DraftState, num_rows: int, num_drafts: int, filtered: bool) -> None:
        kernels.look_up(state, num_rows, num_drafts, self.shortest, self.longest)


class DraftChain:
    """A draft model's passes one behind the other, each fed what the one before it drew.

    Owns nothing. The first pass takes two tokens of a sequence whose drafts were all right: the last one of them was drawn
    and never fed back, so its keys are not in the draft model's cache yet.
    """

    reads_text = False

    def __init__(self, model: CausalLM, kv_cache: Tensor, draw: Draw, filtered_draw: FilteredDraw, max_model_len: int):
        self._model, self._kv_cache, self._max_model_len = model, kv_cache, max_model_len
        self._draw, self._filtered_draw, self.block_size = draw, filtered_draw, kv_cache.shape[3]
        self._starts = torch.zeros(0, dtype=torch.int32, device=kv_cache.device)

    def propose(self, kernels: ModuleType, state: DraftState, num_rows: int, num_drafts: int, filtered: bool) -> None:
        n, tables = num_rows, state.rows.block_tables[:num_rows]
        if len(self._starts) <= 2 * n:
            self._starts = torch.arange(2 * n + 1, dtype=torch.int32, device=self._kv_cache.device)
        kernels.first_draft_rows(state, n, self.block_size)
        hidden = self._forward(state, 2 * n, Context(
            self._starts[:2 * n + 1:2], state.draft_context_lens[:n], tables, state.draft_slots[:2 * n], 2,
            self._max_model_len, n, state.draft_last[:n], query_lens=state.draft_query_lens[:n]))
        guesses = self._guess(state, hidden[state.draft_last[:n]], filtered)
        chain = [guesses]
        for step in range(1, num_drafts):
            kernels.next_draft_rows(state, n, self.block_size, step, guesses)
            hidden = self._forward(state, n, Context(
                self._starts[:n + 1], state.draft_context_lens[:n], tables, state.draft_slots[:n], 1, self._max_model_len, n,
                self._starts[:n]))
            guesses = self._guess(state, hidden, filtered)
            chain.append(guesses)
        state.drafts[:n, :num_drafts].copy_(torch.stack(chain, 1))
        state.found[:n].fill_(num_drafts)

    def _forward(self, state: DraftState, num_tokens: int, context: Context) -> Tensor:
        return self._model(state.draft_ids[:num_tokens], state.draft_positions[:num_tokens], self._kv_cache, context)

    def _guess(self, state: DraftState, hidden: Tensor, filtered: bool) -> Tensor:
        """Drawn as the model will draw it: same seed, offset, temperature and filters, so the same noise (see DraftModel)."""
        n, rows = len(hidden), state.rows
        logits = self._model.compute_logits(hidden)
        tokens = self._draw(logits, rows.temperatures[:n], rows.seeds[:n], state.draft_offsets[:n])
        if filtered:
            self._filtered_draw(logits, rows.temperatures[:n], rows.seeds[:n], state.draft_offsets[:n],
                                filters_of(rows, self._starts[:n]), tokens)
        return tokens


def filters_of(rows: RowState | DraftState, numbers: Tensor) -> Filters:
    n: Any = len(numbers)
    return Filters(numbers, rows.top_k[:n, None], rows.top_p[:n, None], rows.min_p[:n, None])
