"""Plausible wrong answers to chapter 15: name of the check -> answers that must fail it, each with a hint of its own."""


def counts_each_draft_alone(acceptance, k):
    return 1 + k * acceptance


def forgets_the_models_own(acceptance, k):
    return sum(acceptance**i for i in range(1, k + 1))


def keeps_everything(drafts, drawn):
    return drawn


def keeps_drafts_only(drafts, drawn):
    kept = 0
    while kept < len(drafts) and drafts[kept] == drawn[kept]:
        kept += 1
    return drawn[:kept] if kept < len(drafts) else drawn


class IgnoresTheLimit:
    def propose(self, sequences, limits):
        return [[3, 4, 5, 1, 2] if len(seq.token_ids) > 3 else [] for seq in sequences]


class NeverGuesses:
    def propose(self, sequences, limits):
        return [[] for _ in sequences]


WRONG = {
    "check_tokens_per_step": [counts_each_draft_alone, forgets_the_models_own],
    "check_keep": [keeps_everything, keeps_drafts_only],
    "check_Repeats": [IgnoresTheLimit, NeverGuesses],
}
