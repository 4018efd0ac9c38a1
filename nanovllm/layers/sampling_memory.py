"""What a step's sampling needs at its worst: every row filtered, penalized, and asked for its log-probabilities."""

import torch
from torch import Tensor

from nanovllm.layers.logits_processors import LogitsProcessors, Penalties
from nanovllm.layers.logprobs import TopLogprobs, top_logprobs
from nanovllm.layers.sampler import Sample, SamplingBatch
from nanovllm.layers.token_bitmask import TokenBitmask
from nanovllm.sampling_params import MAX_LOGPROBS
from nanovllm.utils.filters import Filters


def worst_batch(num_rows: int, longest: int, vocab_size: int, device: torch.device | str) -> SamplingBatch:
    """The batch that needs most memory: every filter, bias, penalty and mask in each row, behind `longest` tokens."""
    def column(value: float) -> Tensor:
        return torch.full((num_rows, 1), value, dtype=torch.float32, device=device)

    rows = torch.arange(num_rows, device=device)
    history = torch.zeros(num_rows, longest, dtype=torch.int64, device=device)
    penalties = Penalties(rows, history, torch.ones_like(history, dtype=torch.bool), column(1.1), column(0.1), column(0.1))
    bits = torch.full((num_rows, -(-vocab_size // 32)), -1, dtype=torch.int32, device=device)
    processors = LogitsProcessors((rows, torch.zeros_like(rows), column(1.0)[:, 0]), penalties, TokenBitmask(rows, bits),
                                  TokenBitmask(rows, bits.clone()))
    filters = Filters(rows, torch.full((num_rows, 1), 50, dtype=torch.int64, device=device), column(0.9), column(0.01))
    return SamplingBatch(column(0.8)[:, 0], rows, rows, filters, processors)


def sample_worst(sampler: Sample, logits: Tensor, longest: int) -> tuple[Tensor, TopLogprobs]:
    """Sample `logits`, [num_rows, vocab_size], as a step of `worst_batch` does, for whoever measures its peak of memory."""
    asked = logits.clone()  # as rows that a graph did not finish are taken out of its logits
    token_ids = sampler(asked, worst_batch(len(logits), longest, logits.shape[-1], logits.device))
    return token_ids, top_logprobs(asked, token_ids, MAX_LOGPROBS)
