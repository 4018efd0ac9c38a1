"""Solutions of chapter 10."""

import torch

from nanovllm.layers.sampler import filter_logits

from ..ch10 import uniform


def probabilities(logits, temperatures):
    greedy = (temperatures == 0)[:, None]
    scaled = logits / torch.where(greedy, 1, temperatures[:, None])
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp()
    first = torch.zeros_like(weights).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.where(greedy, first, weights / weights.sum(-1, keepdim=True))


def keep_top_p(probs, top_p):
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    keep = (before < top_p[:, None]) | (top_p[:, None] == 1)
    return torch.zeros_like(keep).scatter(-1, order, keep)


class MySampler:
    def __call__(self, logits, batch):
        if batch.processors is not None:
            logits = batch.processors(logits)
        if batch.temperatures is None:
            return logits.argmax(-1)
        scores = logits.float() / batch.temperatures[:, None].masked_fill(batch.temperatures[:, None] == 0, 1)
        if batch.filters is not None:
            rows = batch.filters.rows
            scores = scores.index_copy(0, rows, filter_logits(scores[rows], batch.filters))
        waits = -uniform(batch.seeds, batch.offsets, logits.shape[-1]).log()
        winners = (waits / scores.double().softmax(-1)).argmin(-1)
        return torch.where(batch.temperatures == 0, logits.argmax(-1), winners)
