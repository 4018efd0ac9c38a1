"""The masks of a step, made on the host while the device computes the logits that they are for. Imports no torch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.token_matcher import TokenBitmasks
from nanovllm.errors import RequestFailed


def bitmasks_of(batch: ScheduledBatch, vocab_size: int, eos_token_ids: tuple[int, ...]) -> TokenBitmasks | None:
    """What each masked row of a step may draw; None, without any work, when no sequence in it has a matcher.

    A row for a draft's position gets the mask that holds if the drafts before it are right. Behind a draft that the grammar
    does not allow there is nothing to mask: it cannot be drawn, and what comes after it is dropped.

    A matcher that raises RequestFailed ends its own sequence, at its next token, and no other.
    """
    rows: list[int] = []
    items: list[ScheduledSequence] = []
    row = 0
    for item in batch.items:
        num_draws = len(item.drawn_positions)
        if num_draws and item.seq.matcher is not None:
            rows += range(row, row + num_draws)
            items.append(item)
        row += num_draws
    if not items:
        return None
    bits = np.full((len(rows), -(-vocab_size // 32)), -1, np.int32)
    first = 0
    for item in items:
        num_draws = len(item.drawn_positions)
        own = bits[first:first + num_draws]
        try:
            _fill(own, item, eos_token_ids)
        except RequestFailed as error:
            item.seq.error, own[:] = error, -1
        first += num_draws
    return TokenBitmasks(np.array(rows, np.int64), bits)


def _fill(bits: NDArray[np.int32], item: ScheduledSequence, eos_token_ids: tuple[int, ...]) -> None:
    """One sequence's rows: [1 + num_drafts, words]."""
    seq, params, positions, taken = item.seq, item.seq.sampling_params, item.drawn_positions, 0
    assert seq.matcher is not None
    if positions.start != len(seq.token_ids):
        raise RuntimeError(f"{seq!r} draws token {positions.start} by a grammar that has seen {len(seq)}; this is a bug.")
    for row, position in enumerate(positions):
        if row:
            if not seq.matcher.advance(item.draft_token_ids[row - 1]):
                break
            taken += 1
        seq.matcher.fill_bitmask(bits[row])
        if position - seq.num_prompt_tokens < params.min_tokens:
            _forbid(bits[row], params.ending_tokens(eos_token_ids) | set(eos_token_ids))
        elif params.ignore_eos:
            _forbid(bits[row], eos_token_ids)
    seq.matcher.rollback(taken)


def _forbid(bits: NDArray[np.int32], token_ids: Iterable[int]) -> None:
    """Clear these tokens' bits, unless no other is set: where the answer can only end, it ends."""
    without = bits.view(np.uint32).copy()
    for token in token_ids:
        without[token // 32] &= ~np.uint32(1 << token % 32)
    if without.any():
        bits[:] = without.view(np.int32)
