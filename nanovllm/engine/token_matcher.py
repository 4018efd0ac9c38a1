"""Which tokens may come next, for answers that must have a shape. Imports no torch.

The engine knows token ids, and neither text nor grammars. It is given a matcher with a sequence, tells it each token that
was drawn, and asks it for a mask before each draw.
"""

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nanovllm.errors import RequestFailed


class TokenMatcher(Protocol):
    """One sequence's place in a grammar. It has taken in exactly the sequence's output tokens.

    is_finished: whether nothing can follow, so that the sequence ends.
    """

    @property
    def is_finished(self) -> bool: ...

    def fill_bitmask(self, bitmask: NDArray[np.int32]) -> None:
        """Set the bit of every token that may come next, and clear all others: token 32 w + i is bit i of word w.

        bitmask: [ceil(vocab_size / 32)] int32, contiguous. Tokens that end a sequence are among them where it may end.
        """

    def advance(self, token_id: int) -> bool:
        """Take in the next token. False, with nothing changed, when it may not come next."""
        ...

    def num_allowed(self, token_ids: list[int]) -> int:
        """How many of these tokens may follow, one after the other. Takes none of them in."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens taken in."""


class BatchMatcher(TokenMatcher, Protocol):
    """A matcher whose class fills the masks of many at once, by several threads."""

    @classmethod
    def fill_bitmasks(cls, matchers: ListLike[Self], bitmasks: NDArray[np.int32], rows: ListLike[int],
                      drafts: ListLike[list[int]]) -> dict[int, RequestFailed]:
        """As `fill_with_drafts` for each of them, from its row of `bitmasks` on, [num_rows, ceil(vocab_size / 32)].

        Returns, by first row, what that would have raised.
        """
        ...


class ForcingMatcher(TokenMatcher, Protocol):
    """A matcher that knows where its grammar leaves no choice."""

    def forced_tokens(self, most: int) -> list[int]:
        """Up to so many tokens that come next because nothing else may; none where there is a choice. Takes none of them in.

        The masks decide, so that one too many costs time and changes nothing.
        """
        ...


def forced_tokens(matcher: TokenMatcher, most: int) -> list[int]:
    """As `ForcingMatcher.forced_tokens`; none from a matcher of another kind."""
    ask: Callable[[int], list[int]] | None = getattr(matcher, "forced_tokens", None)
    return ask(most) if ask and most > 0 else []


def fill_with_drafts(matcher: TokenMatcher, bitmasks: NDArray[np.int32], drafts: list[int]) -> None:
    """The mask of its next token, and behind it one for the token after each draft, if the drafts before that are right.

    Behind a draft that may not come there is nothing to mask, and all bits are set. bitmasks: [1 + len(drafts), words].
    """
    matcher.fill_bitmask(bitmasks[0])
    taken, bitmasks[1:] = 0, -1
    for row, draft in enumerate(drafts, 1):
        if not matcher.advance(draft):
            break
        taken += 1
        matcher.fill_bitmask(bitmasks[row])
    matcher.rollback(taken)


def fill_together(matchers: ListLike[TokenMatcher], bitmasks: NDArray[np.int32], rows: ListLike[int],
                  drafts: ListLike[list[int]]) -> dict[int, RequestFailed]:
    """As `BatchMatcher.fill_bitmasks`, for matchers of any kinds."""
    kinds: dict[type, list[int]] = {}
    for i, matcher in enumerate(matchers):
        kinds.setdefault(type(matcher), []).append(i)
    errors: dict[int, RequestFailed] = {}
    for kind, chosen in kinds.items():
        if fill_all := getattr(kind, "fill_bitmasks", None):
            errors |= fill_all([matchers[i] for i in chosen], bitmasks, [rows[i] for i in chosen], [drafts[i] for i in chosen])
            continue
        for i in chosen:
            try:
                fill_with_drafts(matchers[i], bitmasks[rows[i]:rows[i] + 1 + len(drafts[i])], drafts[i])
            except RequestFailed as error:
                errors[rows[i]] = error
    return errors


@dataclass(slots=True)
class TokenBitmasks:
    """What the masked rows of a step may draw.

    rows: [num_masked] int64, which of the step's draws they are, in rising order.
    bits: [num_masked, ceil(vocab_size / 32)] int32, as in `TokenMatcher.fill_bitmask`.
    """

    rows: NDArray[np.int64]
    bits: NDArray[np.int32]
