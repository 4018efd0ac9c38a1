"""The masks of a step, made on the host while the device computes the logits that they are for. Imports no torch."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.token_matcher import TokenBitmasks, TokenMatcher, fill_together
from nanovllm.errors import RequestFailed

NewArray = Callable[[tuple[int, ...]], NDArray[np.int32]]


def _new_array(shape: tuple[int, ...]) -> NDArray[np.int32]:
    return np.empty(shape, np.int32)


def bitmasks_of(batch: ScheduledBatch, vocab_size: int, eos_token_ids: tuple[int, ...], new_array: NewArray = _new_array
                ) -> TokenBitmasks | None:
    """What each masked row of a step may draw; None, without any work, when no sequence in it has a matcher.

    A row for a draft's position gets the mask that holds if the drafts before it are right. Behind a draft that the grammar
    does not allow there is nothing to mask: it cannot be drawn, and what comes after it is dropped.

    A matcher that raises RequestFailed ends its own sequence, at its next token, and no other. new_array: makes the array for
    the bits, of a given shape, in memory of the caller's choice.
    """
    rows: list[int] = []
    items: list[tuple[ScheduledSequence, TokenMatcher]] = []
    row = 0
    for item in batch.items:
        num_draws = len(item.drawn_positions)
        if num_draws and item.seq.matcher is not None:
            rows += range(row, row + num_draws)
            items.append((item, item.seq.matcher))
        row += num_draws
    if not items:
        return None
    bits = new_array((len(rows), -(-vocab_size // 32)))
    first, firsts = 0, []
    for item, _ in items:
        if item.drawn_positions.start != len(item.seq.token_ids):
            raise RuntimeError(f"{item.seq!r} draws token {item.drawn_positions.start} by a grammar that has seen "
                               f"{len(item.seq)}; this is a bug.")
        firsts.append(first)
        first += len(item.drawn_positions)
    errors = fill_together([matcher for _, matcher in items], bits, firsts, [item.draft_token_ids for item, _ in items])
    for (item, _), first in zip(items, firsts):
        own = bits[first:first + len(item.drawn_positions)]
        error = errors.get(first)
        try:
            if error is not None:
                raise error
            _forbid_ends(own, item, eos_token_ids)
        except RequestFailed as failed:
            item.seq.error, own[:] = failed, -1
    return TokenBitmasks(np.array(rows, np.int64), bits)


def _forbid_ends(bits: NDArray[np.int32], item: ScheduledSequence, eos_token_ids: tuple[int, ...]) -> None:
    """Take out of one sequence's rows the tokens that must not end it yet."""
    params = item.seq.sampling_params
    if params.min_tokens or params.ignore_eos:
        for own, position in zip(bits, item.drawn_positions):
            if position - item.seq.num_prompt_tokens < params.min_tokens:
                _forbid(own, params.ending_tokens(eos_token_ids) | set(eos_token_ids))
            elif params.ignore_eos:
                _forbid(own, eos_token_ids)


def _forbid(bits: NDArray[np.int32], token_ids: Iterable[int]) -> None:
    """Clear these tokens' bits, unless no other is set: where the answer can only end, it ends."""
    allowed = [token for token in token_ids if int(bits[token // 32]) >> token % 32 & 1]
    if not allowed:
        return
    without = bits.view(np.uint32).copy()
    for token in allowed:
        without[token // 32] &= ~np.uint32(1 << token % 32)
    if without.any():
        bits[:] = without.view(np.int32)
