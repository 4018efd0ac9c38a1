"""Plausible wrong answers to chapter 15: name of the check -> answers that must fail it, each with a hint of its own."""

import torch

from nanovllm.engine.drafts_ngram import NgramIndex


def counts_each_draft_alone(acceptance, k):
    return 1 + k * acceptance


def forgets_the_models_own(acceptance, k):
    return sum(acceptance**i for i in range(1, k + 1))


class IgnoresTheLimit:
    def propose(self, sequences, limits):
        return [[3, 4, 5, 1, 2] if len(seq.token_ids) > 3 else [] for seq in sequences]


class NeverGuesses:
    def propose(self, sequences, limits):
        return [[] for _ in sequences]


class TakesTheFirst:
    def propose(self, sequences, limits):
        return [self.after(seq.token_ids, limit) for seq, limit in zip(sequences, limits, strict=True)]

    @staticmethod
    def after(tokens, limit):
        for end in range(2, len(tokens)):
            if tokens[end - 2:end] == tokens[-2:]:
                return tokens[end:end + limit]
        return []


class UsesTheFinishedIndex:
    def propose(self, sequences, limits):
        return [NgramIndex(2, 2).propose(seq.token_ids, limit) for seq, limit in zip(sequences, limits, strict=True)]


def keeps_every_guess(p, q, guess):
    return guess


def ignores_the_guess(p, q, guess):
    return int(torch.multinomial(p, 1))


def draws_from_all_of_p(p, q, guess):
    return guess if torch.rand(()) < p[guess] / q[guess] else int(torch.multinomial(p, 1))


def refuses_whatever_p_likes_less(p, q, guess):
    return guess if p[guess] >= q[guess] else int(torch.multinomial((p - q).clamp(min=0), 1))


WRONG = {
    "check_tokens_per_step": [counts_each_draft_alone, forgets_the_models_own],
    "check_Repeats": [IgnoresTheLimit, NeverGuesses, TakesTheFirst, UsesTheFinishedIndex],
    "check_settle": [keeps_every_guess, ignores_the_guess, draws_from_all_of_p, refuses_whatever_p_likes_less],
}
