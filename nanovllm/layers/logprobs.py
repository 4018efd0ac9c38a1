"""How likely the model thought a token, and which tokens it thought likelier."""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_ROWS = 64  # rows whose log-probabilities are there at once: 39 MB in float32 with 152,000 tokens


class TopLogprobs(NamedTuple):
    """Natural logs of probabilities, on the device until `tolist`.

    token_ids: [num_rows, 1 + k] int64, the chosen token and then the k likeliest, best first; logprobs: the same shape,
    float32. ranks: [num_rows] int64, the chosen token's place among all, from 1.
    """

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor


def top_logprobs(logits: Tensor, chosen: Tensor, k: int) -> TopLogprobs:
    """logits: [num_rows, vocab_size] as the model gave them; chosen: [num_rows] int64, below 0 where none is."""
    chosen, k = chosen.clamp(min=0), min(k, logits.shape[-1])
    if len(logits) > CHUNK_ROWS:
        parts = [top_logprobs(*some, k) for some in zip(logits.split(CHUNK_ROWS), chosen.split(CHUNK_ROWS))]
        return TopLogprobs(*map(torch.cat, zip(*parts)))
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, chosen[:, None])
    values, token_ids = logprobs.topk(k, -1)
    return TopLogprobs(torch.cat((chosen[:, None], token_ids), -1), torch.cat((own, values), -1), (logprobs > own).sum(-1) + 1)
