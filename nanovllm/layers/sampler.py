"""From scores to tokens: one draw a row, each row by its own rules."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanovllm.sampling_params import SamplingParams


@dataclass(slots=True)
class SamplingBatch:
    """What the rows of one step ask for. A filter that no row asks for is None and costs nothing.

    temperatures: [num_rows, 1] float32, None when all rows are greedy; 0 marks a greedy row among others.
    top_k: [num_rows, 1] int64. top_p, min_p: [num_rows, 1] float32.
    seeds: row -> (seed, index of the token being drawn), for rows whose draw must not depend on the batch.
    """

    temperatures: Tensor | None = None
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None
    seeds: dict[int, tuple[int, int]] | None = None

    @classmethod
    def from_params(cls, params: list[SamplingParams], offsets: list[int], device="cpu") -> "SamplingBatch":
        """params: one for each row; offsets: how many tokens each row's request has drawn before."""
        if all(p.greedy for p in params):
            return cls()

        def column(values, dtype=torch.float32):
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True).unsqueeze(1)

        drawn = [p for p in params if not p.greedy]  # greedy rows ignore every filter
        return cls(
            temperatures=column([p.temperature for p in params]),
            top_k=column([p.top_k if p.top_k > 0 else 2**31 for p in params], torch.int64)
            if any(p.top_k > 0 for p in drawn) else None,
            top_p=column([p.top_p for p in params]) if any(p.top_p < 1 for p in drawn) else None,
            min_p=column([p.min_p for p in params]) if any(p.min_p > 0 for p in drawn) else None,
            seeds={i: (p.seed, offset) for i, (p, offset) in enumerate(zip(params, offsets))
                   if p.seed is not None and not p.greedy})


class Sampler(nn.Module):
    """Draws one token a row. Owns the generator of unseeded draws, and nothing of any request.

    Filters come in transformers' order, temperature, top-k, top-p, min-p, and mean the same as its logits processors.
    The draw is the exponential race: token i finishes at Exp(1) / p_i and the first one home is distributed as p. It is
    Gumbel-max under a logarithm, needs no sum over the vocabulary, and never waits for the device.
    """

    def __init__(self, seed: int | None = None, device="cpu"):
        super().__init__()
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def forward(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """logits: [num_rows, vocab_size] -> token ids [num_rows] int64."""
        greedy = logits.argmax(-1)
        if batch.temperatures is None:
            return greedy
        is_greedy = batch.temperatures == 0
        scores = filter_logits(logits.float() / batch.temperatures.masked_fill(is_greedy, 1), batch)
        drawn = (scores.softmax(-1) / self._race(scores, batch.seeds)).argmax(-1)
        return torch.where(is_greedy.squeeze(1), greedy, drawn)

    def _race(self, scores: Tensor, seeds: dict[int, tuple[int, int]] | None) -> Tensor:
        """Exp(1) noise like `scores`; a seeded row gets its own, fixed by seed and offset alone."""
        noise = torch.empty_like(scores).exponential_(generator=self.generator)
        for row, (seed, offset) in (seeds or {}).items():
            # On the CPU, so that a seed means the same on every device. The offset is mixed in by a large odd constant.
            own = torch.Generator().manual_seed((seed + offset * 0x9E3779B97F4A7C15) % 2**63)
            noise[row] = torch.empty(scores.shape[1]).exponential_(generator=own).to(scores.device, non_blocking=True)
        return noise.clamp_min_(torch.finfo(noise.dtype).tiny)


def filter_logits(scores: Tensor, batch: SamplingBatch) -> Tensor:
    """Set to -inf what each row's top_k, top_p and min_p exclude. scores: [num_rows, vocab_size], by temperature already."""
    if batch.top_k is not None or batch.top_p is not None:
        ordered, order = scores.sort(-1, descending=True)
        if batch.top_k is not None:  # by value, not by rank: ties with the k-th stay, as in transformers
            kth = ordered.gather(-1, batch.top_k.clamp(max=scores.shape[-1]) - 1)
            scores = scores.masked_fill(scores < kth, float("-inf"))
            ordered = ordered.masked_fill(ordered < kth, float("-inf"))
        if batch.top_p is not None:
            probs = ordered.softmax(-1)
            before = probs.cumsum(-1) - probs  # what the more likely tokens add up to: 0 for the first, so it stays
            drop = (before >= batch.top_p) & (batch.top_p < 1)
            scores = scores.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    if batch.min_p is not None:
        probs = scores.softmax(-1)
        scores = scores.masked_fill(probs < batch.min_p * probs.amax(-1, keepdim=True), float("-inf"))
    return scores
