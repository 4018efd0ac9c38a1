"""Plausible wrong answers to chapter 13: name of the check -> answers that must fail it, each with a hint of its own."""

import torch
import torch.nn.functional as F

from chapters.exercises.solutions import ch13 as solution

SIZES = (1, 2, 4, 8)


def smallest_that_fits(weights, cache, num_layers, room, bandwidth, round_seconds):
    return next((size for size in SIZES if (weights + cache) / size <= room), None)


def as_many_as_there_are(weights, cache, num_layers, room, bandwidth, round_seconds):
    return 8 if (weights + cache) / 8 <= room else None


def forgets_the_cache(weights, cache, num_layers, room, bandwidth, round_seconds):
    return solution.best_size(weights, 0, num_layers, room, bandwidth, round_seconds)


def forgets_the_embedding(weights, cache, num_layers, room, bandwidth, round_seconds):
    return solution.best_size(weights, cache, num_layers - 0.5, room, bandwidth, round_seconds)


def one_round_for_any_size(weights, cache, num_layers, room, bandwidth, round_seconds):
    """The cost of the page's first estimate: a sum takes as long on eight ranks as on two."""
    def seconds(size):
        return (weights + cache) / size / bandwidth + (size > 1) * (2 * num_layers + 1) * 2 * round_seconds

    return min((size for size in SIZES if (weights + cache) / size <= room), key=seconds, default=None)


def half_a_ring(weights, cache, num_layers, room, bandwidth, round_seconds):
    return solution.best_size(weights, cache, num_layers, room, bandwidth, round_seconds / 2)


def does_not_look_at_the_room(weights, cache, num_layers, room, bandwidth, round_seconds):
    return solution.best_size(weights, cache, num_layers, 10**15, bandwidth, round_seconds)


class BiasOnEveryRank(solution.ParallelMLP):
    def __call__(self, x):
        gate, up = (x @ self.gate_up.T).chunk(2, -1)
        return self.tp.all_reduce((F.silu(gate) * up) @ self.down.T + self.bias)


class NoBias(solution.ParallelMLP):
    def __call__(self, x):
        return super().__call__(x) - self.bias


class NoSum(solution.ParallelMLP):
    def __call__(self, x):
        gate, up = (x @ self.gate_up.T).chunk(2, -1)
        return (F.silu(gate) * up) @ self.down.T + self.bias


class KeepsViews:
    """Right in every number; but each rank's memory is full of the other ranks' weights."""

    def __init__(self, gate, up, down, bias, tp):
        mine = slice(tp.rank * len(gate) // tp.size, (tp.rank + 1) * len(gate) // tp.size)
        self.gate, self.up, self.down, self.bias, self.tp = gate[mine], up[mine], down[:, mine], bias, tp

    def __call__(self, x):
        return self.tp.all_reduce((F.silu(x @ self.gate.T) * (x @ self.up.T)) @ self.down.T) + self.bias


class CutsThePackedWeight:
    """The first half of gate and up together is all of gate."""

    def __init__(self, gate, up, down, bias, tp):
        share = gate.shape[0] // tp.size
        self.gate_up = torch.cat((gate, up)).chunk(tp.size)[tp.rank].clone()
        self.down, self.bias, self.tp = down[:, tp.rank * share:(tp.rank + 1) * share].clone(), bias, tp

    def __call__(self, x):
        gate, up = (x @ self.gate_up.T).chunk(2, -1)
        return self.tp.all_reduce((F.silu(gate) * up) @ self.down.T) + self.bias


class RowsFirst:
    """Cuts gate and up by input features, so that SiLU has to wait for a sum of its own."""

    def __init__(self, gate, up, down, bias, tp):
        self.gate, self.up, self.down = (w.chunk(tp.size, -1)[tp.rank].clone() for w in (gate, up, down))
        self.bias, self.tp = bias, tp

    def __call__(self, x):
        mine = x.chunk(self.tp.size, -1)[self.tp.rank]
        gate, up = (self.tp.all_reduce(mine @ w.T) for w in (self.gate, self.up))
        return self.tp.all_reduce((F.silu(gate) * up).chunk(self.tp.size, -1)[self.tp.rank] @ self.down.T) + self.bias


class OnlyTheFirstRankSums(solution.ParallelMLP):
    def __call__(self, x):
        return super().__call__(x) if self.tp.rank == 0 else x


def gathers_everything(scores, tp):
    return tp.all_gather(scores).argmax(-1)


def forgets_where_its_share_begins(scores, tp):
    best, place = scores.max(-1)
    best, place = (tp.all_gather(own[:, None]) for own in (best, place))
    return place.gather(1, best.argmax(-1, keepdim=True))[:, 0]


def takes_the_last_of_equals(scores, tp):
    best, place = scores.max(-1)
    token = place + tp.rank * scores.shape[-1]
    best, token = (tp.all_gather(own[:, None]) for own in (best, token))
    last = tp.size - 1 - best.flip(-1).argmax(-1, keepdim=True)
    return token.gather(1, last)[:, 0]


def packs_the_id_beside_the_score(scores, tp):
    best, place = scores.max(-1)
    pair = torch.stack((best, (place + tp.rank * scores.shape[-1]).to(scores.dtype)), -1)
    best, token = tp.all_gather(pair).unflatten(-1, (tp.size, 2)).unbind(-1)
    return token.gather(1, best.argmax(-1, keepdim=True))[:, 0].long()


def fills_with_zeros(scores, tp):
    """As the embedding does; but zero is more than a negative score."""
    best, place = scores.max(-1)
    padded = torch.zeros(len(scores), tp.size).to(scores.dtype)
    padded[:, tp.rank] = best
    if tp.size > 1:
        best = tp.all_gather(padded[:, tp.rank:tp.rank + 1].clamp(min=0))
        token = tp.all_gather((place + tp.rank * scores.shape[-1])[:, None])
        return token.gather(1, best.argmax(-1, keepdim=True))[:, 0]
    return place


WRONG = {
    "check_best_size": [smallest_that_fits, as_many_as_there_are, forgets_the_cache, forgets_the_embedding,
                        one_round_for_any_size, half_a_ring, does_not_look_at_the_room],
    "check_parallel_mlp": [BiasOnEveryRank, NoBias, NoSum, KeepsViews, CutsThePackedWeight, RowsFirst, OnlyTheFirstRankSums],
    "check_draw_in_parts": [gathers_everything, forgets_where_its_share_begins, takes_the_last_of_equals,
                            packs_the_id_beside_the_score, fills_with_zeros],
}
