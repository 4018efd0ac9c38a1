"""Bias, forbidden tokens and penalties against transformers' processors, and against the definition where it has none."""

import random

import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from nanovllm import SamplingParams
from nanovllm.layers.logits_processors import LogitsProcessors

VOCAB, EOS = 50, (3, 11)
REQUESTS = [dict(), dict(repetition_penalty=1.3), dict(repetition_penalty=0.7), dict(presence_penalty=0.8),
            dict(frequency_penalty=-1.5), dict(presence_penalty=-0.5, frequency_penalty=0.25),
            dict(logit_bias={4: 2.5, 9: -100}),
            dict(min_tokens=5), dict(min_tokens=5, stop_token_ids=[7], logit_bias={7: 3.0, 3: 9.0}),
            dict(min_tokens=5, ignore_eos=True), dict(min_tokens=6, ignore_eos=True, stop_token_ids=[8]),
            dict(repetition_penalty=1.2, presence_penalty=0.4, frequency_penalty=0.3, min_tokens=9,
                 logit_bias={1: -1.0, 2: 1.0})]


def processors_of(params, tokens, num_prompt_tokens):
    """As the engine makes them: everything but the last token from the host, the last one from the device."""
    last = torch.tensor([row[-1] for row in tokens])
    return LogitsProcessors.from_rows(params, [row[:-1] for row in tokens], num_prompt_tokens, last, EOS, VOCAB)


def transformers_says(logits, p, tokens, num_prompt):
    """transformers' processors in its own order; presence and frequency, which it lacks, by OpenAI's definition."""
    ids, scores, bias = torch.tensor([tokens]), logits[None].clone(), {(t,): float(b) for t, b in (p.logit_bias or {}).items()}
    if bias:
        scores = SequenceBiasLogitsProcessor(bias)(ids, scores)
    if p.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(p.repetition_penalty)(ids, scores)
    if p.min_tokens and p.ending_tokens(EOS):
        ends = sorted(p.ending_tokens(EOS))
        scores = MinNewTokensLengthLogitsProcessor(num_prompt, p.min_tokens, ends)(ids, scores)
    output = tokens[num_prompt:]
    for token in set(output):
        scores[0, token] -= p.presence_penalty + p.frequency_penalty * output.count(token)
    return scores[0]


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_transformers_each_row_by_its_own_rules(seed):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    params = [SamplingParams(**{"max_tokens": 20} | r) for r in REQUESTS]
    num_prompt = [rng.randint(1, 30) for _ in params]
    tokens = [[rng.randrange(VOCAB) for _ in range(n + rng.randint(0, 12))] for n in num_prompt]
    logits = 3 * torch.randn(len(params), VOCAB)
    kept = logits.clone()
    changed = processors_of(params, tokens, num_prompt)(logits)
    for row, expected, p in zip(changed, map(transformers_says, logits, params, tokens, num_prompt), params, strict=True):
        torch.testing.assert_close(row, expected, msg=lambda m, p=p: f"{p}: {m}")
    assert torch.equal(logits, kept)


def test_low_precision_logits_are_changed_in_float32():
    logits = torch.randn(2, VOCAB).bfloat16()
    params = [SamplingParams(presence_penalty=0.01), SamplingParams()]
    scores = processors_of(params, [[1, 2, 2], [5]], [1, 1])(logits)
    assert scores.dtype == torch.float32 and torch.equal(scores[1], logits[1].float())
    assert scores[0, 2] == logits[0, 2].float() - 0.01 and scores[0, 1] == logits[0, 1].float()


def test_what_no_row_asks_for_is_not_prepared(monkeypatch):
    plain = [SamplingParams(temperature=t, top_k=k) for t, k in ((0, 0), (1, 5), (0.5, 0))]
    made = []
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(a))
    last = torch.zeros(3, dtype=torch.int64)
    assert LogitsProcessors.from_rows(plain, [[1]] * 3, [1] * 3, last, EOS, VOCAB) is None and made == []
    monkeypatch.undo()
    done = SamplingParams(min_tokens=2)  # past its minimum: nothing to forbid any more
    assert processors_of([done], [[1, 2, 3]], [1]) is None
    only_bias = processors_of([SamplingParams(logit_bias={1: 1.0}), *plain], [[1]] * 4, [1] * 4)
    assert only_bias.penalties is None
    only_penalties = processors_of([*plain, SamplingParams(frequency_penalty=1.0)], [[1, 2]] * 4, [1] * 4)
    assert only_penalties.bias is None and only_penalties.penalties.rows.tolist() == [3]


def test_a_bias_of_100_all_but_forces_a_token_and_of_minus_100_forbids_it():
    torch.manual_seed(0)
    logits = torch.randn(2, VOCAB)
    best = logits.argmax(-1).tolist()
    params = [SamplingParams(logit_bias={17: 100}), SamplingParams(logit_bias={best[1]: -100})]
    chosen = processors_of(params, [[1], [1]], [1, 1])(logits).argmax(-1).tolist()
    assert chosen[0] == 17 and chosen[1] != best[1]
