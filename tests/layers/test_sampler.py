"""Filters against transformers' logits processors, draws against their probabilities, and what a seed promises."""

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nanovllm import SamplingParams
from nanovllm.layers.logits_processors import LogitsProcessors
from nanovllm.layers.sampler import Sampler, SamplingBatch, filter_logits

REQUESTS = [dict(), dict(top_k=1), dict(top_k=5), dict(top_k=500), dict(top_p=0.9), dict(top_p=1e-6), dict(min_p=0.1),
            dict(min_p=1.0), dict(top_k=20, top_p=0.7), dict(top_k=7, top_p=0.8, min_p=0.15), dict(temperature=0.3, top_p=0.5),
            dict(temperature=2.5, top_k=30, min_p=0.02), dict(temperature=0.7, top_k=-1)]
VOCAB = 64


def batch_of(*params: SamplingParams, offsets: list[int] | None = None, first_seed: int = 0) -> SamplingBatch:
    """A request without a seed gets one here, as the engine gives it one."""
    seeds = [first_seed + row if p.seed is None else p.seed for row, p in enumerate(params)]
    return SamplingBatch.from_params(list(params), seeds, offsets or [0] * len(params))


def transformers_says(row: torch.Tensor, p: SamplingParams) -> torch.Tensor:
    scores = TemperatureLogitsWarper(p.temperature)(None, row[None]) if p.temperature != 1 else row[None]
    if p.top_k > 0:
        scores = TopKLogitsWarper(p.top_k)(None, scores)
    if p.top_p < 1:
        scores = TopPLogitsWarper(p.top_p)(None, scores)
    if p.min_p > 0:
        scores = MinPLogitsWarper(p.min_p)(None, scores)
    return scores[0]


def ours(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """The scores of rows that have filters, filtered; the others as they are."""
    batch = batch_of(*params)
    scores = logits / batch.temperatures[:, None]
    scores[batch.filters.rows] = filter_logits(scores[batch.filters.rows], batch.filters)
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_filters_equal_transformers_each_row_by_its_own_rules(seed):
    torch.manual_seed(seed)
    params = [SamplingParams(**({"temperature": 1.0} | r)) for r in REQUESTS]
    logits = 3 * torch.randn(len(params), VOCAB)
    for row, expected, p in zip(ours(logits, params), map(transformers_says, logits, params), params, strict=True):
        assert torch.equal(row.isinf(), expected.isinf()), p
        torch.testing.assert_close(row, expected)


def test_ties_with_the_kth_stay_as_in_transformers():
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]])
    p = SamplingParams(top_k=2)
    assert torch.equal(ours(logits, [p])[0], transformers_says(logits[0], p))


def test_a_filter_no_row_asks_for_is_not_prepared():
    batch = batch_of(SamplingParams(temperature=0.5), SamplingParams())
    assert batch.filters is None
    assert batch_of(SamplingParams(temperature=0), SamplingParams(temperature=0)).temperatures is None
    # Greedy rows ignore filters, so theirs cost nothing either.
    assert batch_of(SamplingParams(temperature=0, top_k=3, top_p=0.5, min_p=0.5), SamplingParams()).filters is None
    filters = batch_of(SamplingParams(), SamplingParams(top_k=3), SamplingParams(), SamplingParams(top_k=5)).filters
    assert filters.rows.tolist() == [1, 3] and filters.top_k.tolist() == [[3], [5]]
    assert filters.top_p is None and filters.min_p is None


def test_temperature_alone_never_sorts(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("sorted the vocabulary although no row asked for it")

    monkeypatch.setattr(torch.Tensor, "sort", refuse)
    Sampler()(torch.randn(2, VOCAB), batch_of(SamplingParams(), SamplingParams(min_p=0.1)))
    with pytest.raises(AssertionError):
        Sampler()(torch.randn(1, VOCAB), batch_of(SamplingParams(top_k=3)))


def test_greedy_rows_take_the_best_token_among_drawn_ones():
    torch.manual_seed(0)
    logits = torch.randn(40, VOCAB)
    params = [SamplingParams(temperature=0 if i % 2 else 5.0) for i in range(40)]
    tokens = Sampler()(logits, batch_of(*params))
    best = logits.argmax(-1)
    assert tokens.dtype == torch.int64 and tokens.shape == (40,)
    assert torch.equal(tokens[1::2], best[1::2])
    assert not torch.equal(tokens[::2], best[::2])


@pytest.mark.parametrize("request_", [dict(), dict(temperature=0.5), dict(top_k=4), dict(top_p=0.6), dict(min_p=0.2)], ids=str)
def test_draws_follow_the_probabilities(request_):
    torch.manual_seed(1)
    num_draws, vocab_size = 20_000, 8
    logits = torch.randn(vocab_size)
    p = SamplingParams(**request_)
    expected = transformers_says(logits, p).softmax(-1)
    tokens = Sampler()(logits.expand(num_draws, -1), batch_of(*[p] * num_draws))
    seen = torch.bincount(tokens, minlength=vocab_size) / num_draws
    assert (seen[expected == 0] == 0).all()
    # Five standard deviations of a binomial share: a false alarm once in a million runs.
    assert ((seen - expected).abs() <= 5 * (expected * (1 - expected) / num_draws).sqrt() + 1e-9).all()


def test_seeded_draws_follow_the_probabilities_over_offsets():
    torch.manual_seed(1)
    num_draws, logits = 4_000, torch.randn(8)
    batch = batch_of(*[SamplingParams(seed=7)] * num_draws, offsets=list(range(num_draws)))
    seen = torch.bincount(Sampler()(logits.expand(num_draws, -1), batch), minlength=8) / num_draws
    expected = logits.softmax(-1)
    assert ((seen - expected).abs() <= 5 * (expected * (1 - expected) / num_draws).sqrt()).all()


def test_a_seed_and_an_offset_fix_the_draw_whatever_the_batch():
    torch.manual_seed(0)
    logits = torch.randn(6, 512)
    params = [SamplingParams(seed=i, top_p=0.95) if i % 2 else SamplingParams(temperature=i / 2) for i in range(6)]
    together = Sampler()(logits, batch_of(*params, offsets=[3] * 6))
    for i in (1, 3, 5):
        assert Sampler()(logits[i:i + 1], batch_of(params[i], offsets=[3])).item() == together[i].item()
    flat = torch.zeros(1, 512)
    draws = {Sampler()(flat, batch_of(SamplingParams(seed=s), offsets=[o])).item() for s in range(6) for o in range(6)}
    assert len(draws) > 25, "seeds or offsets hardly change the draw"


def test_rows_with_and_without_filters_draw_from_the_same_noise():
    """A filter that excludes nothing takes the longer way to the same token."""
    torch.manual_seed(2)
    logits = torch.randn(50, VOCAB)
    plain = Sampler()(logits, batch_of(*[SamplingParams(temperature=0.8)] * 50))
    filtered = Sampler()(logits, batch_of(*[SamplingParams(temperature=0.8, top_k=VOCAB)] * 50))
    assert torch.equal(plain, filtered)


def test_nothing_global_is_touched_and_the_logits_are_kept():
    logits = torch.randn(3, VOCAB)
    kept, state = logits.clone(), torch.get_rng_state()
    Sampler()(logits, batch_of(SamplingParams(seed=1), SamplingParams(top_k=3, top_p=0.5, min_p=0.1), SamplingParams()))
    assert torch.equal(logits, kept) and torch.equal(torch.get_rng_state(), state)


def test_processors_change_what_is_drawn_and_nothing_else():
    logits = torch.zeros(3, VOCAB)
    params = [SamplingParams(temperature=0, logit_bias={5: 1.0}), SamplingParams(temperature=1, seed=3, logit_bias={6: 100.0}),
              SamplingParams(temperature=1, seed=4)]
    last = torch.zeros(3, dtype=torch.int64)
    processors = LogitsProcessors.from_rows(params, [[1]] * 3, [1] * 3, last, (), VOCAB)
    batch = SamplingBatch.from_params(params, [0, 3, 4], [0] * 3, processors=processors)
    plain = SamplingBatch.from_params(params, [0, 3, 4], [0] * 3)
    drawn = Sampler()(logits, batch).tolist()
    assert drawn[:2] == [5, 6] and drawn[2] == Sampler()(logits, plain)[2]
    all_greedy = SamplingBatch.from_params(params[:1], [0], [0], processors=processors)
    assert all_greedy.temperatures is None and all_greedy.processors is processors


def test_rows_that_ask_for_nothing_allocate_nothing_more():
    """Counted in the operations that torch runs, for a batch of 32 rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names, self.large = [], []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            self.names.append(func.__name__)
            if isinstance(result, torch.Tensor) and result.numel() >= 32 * VOCAB:
                self.large.append(func.__name__)
            return result

    def operations(*params):
        logits = torch.randn(32, VOCAB)
        batch = batch_of(*params * 32)
        with Count() as count:
            Sampler()(logits, batch)
        return count

    greedy = operations(SamplingParams(temperature=0))
    assert greedy.names[:2] == ["argmax.default", "aminmax.default"] and not greedy.large  # the rest is a number a row
    drawn = operations(SamplingParams()).names
    assert not {name for name in drawn if name.startswith(("sort", "cumsum", "softmax", "_softmax", "scatter", "index"))}
    for option in (dict(top_k=3), dict(top_p=0.5), dict(min_p=0.1)):
        assert len(operations(SamplingParams(**option)).names) > len(drawn)
