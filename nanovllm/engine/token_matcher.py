"""Which tokens may come next, for answers that must have a shape. Imports no torch.

The engine knows token ids, and neither text nor grammars. It is given a matcher with a sequence, tells it each token that
was drawn, and asks it for a mask before each draw.
"""

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
    def fill_bitmasks(cls, matchers: ListLike[Self], bitmasks: NDArray[np.int32], rows: ListLike[int]
                      ) -> dict[int, RequestFailed]:
        """As `fill_bitmask` for each of them, into its row of `bitmasks`, [num_rows, ceil(vocab_size / 32)].

        Returns, by row, what `fill_bitmask` would have raised.
        """
        ...


def fill_together(matchers: ListLike[TokenMatcher], bitmasks: NDArray[np.int32], rows: ListLike[int]
                  ) -> dict[int, RequestFailed]:
    """As `BatchMatcher.fill_bitmasks`, for matchers of any kinds."""
    kinds: dict[type, list[int]] = {}
    for i, matcher in enumerate(matchers):
        kinds.setdefault(type(matcher), []).append(i)
    errors: dict[int, RequestFailed] = {}
    for kind, chosen in kinds.items():
        if fill_all := getattr(kind, "fill_bitmasks", None):
            errors |= fill_all([matchers[i] for i in chosen], bitmasks, [rows[i] for i in chosen])
            continue
        for i in chosen:
            try:
                matchers[i].fill_bitmask(bitmasks[rows[i]])
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
