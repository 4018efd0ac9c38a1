"""What a row's filters are, and the numbers with which the plain and the fast form weigh tokens alike. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NO_TOP_K = 2**31 - 1  # more than any vocabulary holds: how a top_k is written that is off
LOG2_E = 1.44269502162933349609375  # log2(e), as float32 has it
# 2**x for x in [0, 1] by a polynomial: 1 + x (C1 + x (C2 + ...)), good to 8e-8; each number as float32 has it.
EXP2 = (0.6931470036506653, 0.24022991955280304, 0.0554824136197567, 0.009681269526481628, 0.0012414311058819294,
        0.00021795998327434063)
WEIGHT_BITS = 40  # the most likely token weighs 2**40: the weights of four million tokens have a sum below 2**63
SHARE_BITS = 31  # a top_p is rounded down to a multiple of 2**-31


@dataclass(slots=True)
class Filters:
    """What the rows that restrict their draw ask for. A filter that none of them asks for is None and costs nothing.

    rows: [num_filtered] int64, which rows of the step they are.
    top_k: [num_filtered, 1] int64 or int32, NO_TOP_K where it is off. top_p, min_p: [num_filtered, 1] float32, 1 and 0
    where they are off.
    """

    rows: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None

    def active(self) -> Tensor:
        """[num_filtered] bool: which rows have a filter at all."""
        active = self.rows < 0  # none
        for values, off in ((self.top_k, NO_TOP_K), (self.top_p, 1), (self.min_p, 0)):
            if values is not None:
                active = active | (values[:, 0] != off)
        return active
