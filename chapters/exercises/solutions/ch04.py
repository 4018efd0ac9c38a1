"""Solutions of chapter 04."""

from ..ch04 import Workbench


def share_out(uncomputed, budget):
    given = [0] * len(uncomputed)
    for i in sorted(range(len(uncomputed)), key=lambda i: uncomputed[i] > 1):
        given[i] = min(uncomputed[i], budget)
        budget -= given[i]
    return given


class MyScheduler(Workbench):
    def line(self):
        """Who waits, in the order of admission."""
        return list(self.waiting)

    def plan(self, batch):
        budget = self.max_num_batched_tokens
        if any(seq.num_uncomputed_tokens == 1 for seq in self.running):
            budget = min(budget, 25)  # 10 ms + 25 x 0.2 ms: the longest step that a reader should wait through
        for seq in sorted(self.running, key=lambda seq: seq.num_uncomputed_tokens > 1):
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))
        for seq in self.line():
            if not budget or len(self.running) >= self.max_num_seqs:
                break
            self.admit(batch, seq)
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))


class ShortFirst(MyScheduler):
    def line(self):
        """Short prompts first, and every step of waiting counts like two tokens less."""
        return sorted(self.waiting, key=lambda seq: len(seq) - 2 * self.waited(seq))
