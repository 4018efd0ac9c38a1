"""The two ends of the model: token ids to vectors, and vectors to a score for every token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovllm.layers.tensor_parallel import TensorParallel


class VocabParallelEmbedding(nn.Module):
    """Rows of a table, split by token id: a rank returns zeros for ids it does not hold, and a sum completes them.

    weight: [vocab_size / ranks, hidden_size].
    """

    def __init__(self, vocab_size: int, hidden_size: int, tp: TensorParallel, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None):
        super().__init__()
        rows = tp.shard("vocab_size", vocab_size)
        self.weight = nn.Parameter(torch.empty(rows, hidden_size, device=device, dtype=dtype), requires_grad=False)
        self.tp, self.first = tp, tp.rank * rows

    def target(self, name: str, part: str | None) -> Tensor:
        return self.weight

    def share(self, name: str, part: str | None) -> tuple[int, int, int]:
        return 0, self.tp.rank, self.tp.size

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: [num_tokens] -> [num_tokens, hidden_size]."""
        if self.tp.size == 1:
            return F.embedding(token_ids, self.weight)
        local = token_ids - self.first
        mine = (local >= 0) & (local < self.weight.shape[0])
        return self.tp.all_reduce(F.embedding(local * mine, self.weight) * mine[:, None])


class ParallelLMHead(VocabParallelEmbedding):
    """The same table read the other way: scores of this rank's tokens, gathered to the whole vocabulary."""

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size] -> logits [num_rows, vocab_size]."""
        return self.tp.all_gather(F.linear(hidden, self.weight))
