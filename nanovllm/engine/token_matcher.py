"""Which tokens may come next, for answers that must have a shape. Imports no torch.

The engine knows token ids, and neither text nor grammars. It is given a matcher with a sequence, tells it each token that
was drawn, and asks it for a mask before each draw.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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


@dataclass(slots=True)
class TokenBitmasks:
    """What the masked rows of a step may draw.

    rows: [num_masked] int64, which of the step's draws they are, in rising order.
    bits: [num_masked, ceil(vocab_size / 32)] int32, as in `TokenMatcher.fill_bitmask`.
    """

    rows: NDArray[np.int64]
    bits: NDArray[np.int32]

    def among(self, draws: list[int]) -> "TokenBitmasks":
        """The same, for a step of these draws only, which must hold all masked ones. draws: in rising order."""
        return TokenBitmasks(np.searchsorted(np.array(draws, np.int64), self.rows), self.bits)
