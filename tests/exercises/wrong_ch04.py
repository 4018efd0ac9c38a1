"""Plausible wrong answers to chapter 04: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.ch04 import Workbench, _FirstComeFirstServed
from chapters.exercises.solutions.ch04 import MyScheduler


def in_the_given_order(uncomputed, budget):
    given = []
    for tokens in uncomputed:
        given.append(min(tokens, budget))
        budget -= given[-1]
    return given


def never_cuts(uncomputed, budget):
    given = [0] * len(uncomputed)
    for i in sorted(range(len(uncomputed)), key=lambda i: uncomputed[i] > 1):
        if uncomputed[i] <= budget:
            given[i] = uncomputed[i]
            budget -= given[i]
    return given


def no_budget(uncomputed, budget):
    return list(uncomputed)


class IgnoresTheBudget(MyScheduler):
    def plan(self, batch):
        for seq in list(self.waiting)[:self.max_num_seqs - len(self.running)]:
            self.admit(batch, seq)
        for seq in self.running:
            self.give(batch, seq, seq.num_uncomputed_tokens)


class PromptsFirst(Workbench):
    def plan(self, batch):
        budget = self.max_num_batched_tokens
        for seq in list(self.waiting)[:self.max_num_seqs - len(self.running)]:
            self.admit(batch, seq)
        newcomers = [seq for seq in self.running if seq.num_uncomputed_tokens > 1]
        for seq in newcomers or self.running:
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))


class IgnoresThePlaces(MyScheduler):
    def plan(self, batch):
        budget = self.max_num_batched_tokens
        for seq in sorted(self.running, key=lambda seq: seq.num_uncomputed_tokens > 1):
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))
        while self.waiting and budget:
            seq = self.waiting[0]
            self.admit(batch, seq)
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))


class OneBudgetOfTheChapter(_FirstComeFirstServed):
    """What stands in the text."""


class Starves(MyScheduler):
    def line(self):
        return sorted(self.waiting, key=len)


class LongFirst(MyScheduler):
    def line(self):
        return sorted(self.waiting, key=lambda seq: -len(seq))


WRONG = {
    "check_share_out": (in_the_given_order, never_cuts, no_budget),
    "check_scheduler": (IgnoresTheBudget, PromptsFirst, IgnoresThePlaces, OneBudgetOfTheChapter),
    "check_short_first": (Starves, LongFirst, MyScheduler),
}
