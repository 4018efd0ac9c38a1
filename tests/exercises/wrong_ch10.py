"""Plausible wrong answers to chapter 10: name of the check -> answers that must fail it, each with a hint of its own."""

import torch

from chapters.exercises.ch10 import uniform
from chapters.exercises.solutions.ch10 import MySampler


def overflows(logits, temperatures):
    greedy = (temperatures == 0)[:, None]
    weights = (logits / torch.where(greedy, 1, temperatures[:, None])).exp()
    first = torch.zeros_like(weights).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.where(greedy, first, weights / weights.sum(-1, keepdim=True))


def divides_by_zero(logits, temperatures):
    return (logits / temperatures[:, None]).softmax(-1)


def divides_the_probabilities(logits, temperatures):
    shares = logits.softmax(-1) / temperatures[:, None].clamp(min=1e-3)
    return shares / shares.sum(-1, keepdim=True)


def nearly_greedy(logits, temperatures):
    return (logits / temperatures[:, None].clamp(min=1e-6)).softmax(-1)


def stops_before_the_line(probs, top_p):
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(probs, dtype=torch.bool).scatter(-1, order, ordered.cumsum(-1) <= top_p[:, None])


def keeps_the_first_and_stops_before_the_line(probs, top_p):
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    keep = ordered.cumsum(-1) < top_p[:, None]
    keep[:, 0] = True
    return torch.zeros_like(keep).scatter(-1, order, keep)


def goes_one_too_far(probs, top_p):
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    keep = ordered.cumsum(-1) - ordered <= top_p[:, None]
    return torch.zeros_like(keep).scatter(-1, order, keep)


def forgets_to_sort_back(probs, top_p):
    ordered = probs.sort(dim=-1, descending=True, stable=True).values
    return (ordered.cumsum(-1) - ordered < top_p[:, None]) | (top_p[:, None] == 1)


def cuts_at_one(probs, top_p):
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    keep = ordered.cumsum(-1) - ordered < top_p[:, None]
    return torch.zeros_like(keep).scatter(-1, order, keep)


class AsksAGenerator(MySampler):
    def __call__(self, logits, batch):
        if batch.temperatures is None:
            return logits.argmax(-1)
        greedy = batch.temperatures == 0
        scores = logits / batch.temperatures[:, None].masked_fill(greedy[:, None], 1)
        return torch.where(greedy, logits.argmax(-1), scores.softmax(-1).multinomial(1)[:, 0])


class ForgetsTheOffset(MySampler):
    def __call__(self, logits, batch):
        if batch.temperatures is not None:
            batch.offsets = torch.zeros_like(batch.offsets)
        return super().__call__(logits, batch)


class ForgetsTheFilters(MySampler):
    def __call__(self, logits, batch):
        batch.filters = None
        return super().__call__(logits, batch)


class ForgetsTheTemperature(MySampler):
    def __call__(self, logits, batch):
        if batch.temperatures is None:
            return logits.argmax(-1)
        waits = -uniform(batch.seeds, batch.offsets, logits.shape[-1]).log()
        return torch.where(batch.temperatures == 0, logits.argmax(-1), (waits / logits.softmax(-1)).argmin(-1))


WRONG = {
    "check_temperature": (overflows, divides_by_zero, divides_the_probabilities, nearly_greedy),
    "check_keep_top_p": (stops_before_the_line, keeps_the_first_and_stops_before_the_line, goes_one_too_far,
                         forgets_to_sort_back, cuts_at_one),
    "check_sampler": (AsksAGenerator, ForgetsTheOffset, ForgetsTheFilters, ForgetsTheTemperature),
}
