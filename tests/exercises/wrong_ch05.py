"""Plausible wrong answers to chapter 05: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.ch05 import Admission


def counts_the_last_token(num_prompt, max_tokens, max_model_len, num_blocks, block_size):
    return num_prompt < max_model_len and min(num_prompt + max_tokens, max_model_len) <= num_blocks * block_size


def forgets_the_longest_length(num_prompt, max_tokens, max_model_len, num_blocks, block_size):
    return num_prompt + max_tokens - 1 <= num_blocks * block_size


def looks_at_the_prompt_only(num_prompt, max_tokens, max_model_len, num_blocks, block_size):
    return num_prompt < max_model_len and num_prompt <= num_blocks * block_size


class LetsEverybodyIn(Admission):
    def room_for(self, seq):
        return True


class ReservesEverything(Admission):
    def room_for(self, seq):
        return not self.running


class TheEnginesOwn(Admission):
    """One block for each running sequence, and the chunks that were promised: right for the engine, too little here."""

    def room_for(self, seq):
        manager = self.block_manager
        promised = sum(manager.num_new_blocks(s, len(s)) for s in self.running)
        return manager.num_new_blocks(seq, len(seq)) + promised + len(self.running) <= manager.num_free_blocks


class LetsNobodyIn(Admission):
    def room_for(self, seq):
        return False


def the_oldest(candidates):
    return candidates[0]


def the_longest(candidates):
    return max(candidates, key=lambda seq: seq.num_computed_tokens)


def the_newest(candidates):
    return candidates[-1]


def by_number(candidates):
    return len(candidates) - 1


WRONG = {
    "check_can_ever_fit": (counts_the_last_token, forgets_the_longest_length, looks_at_the_prompt_only),
    "check_admission": (LetsEverybodyIn, ReservesEverything, LetsNobodyIn, TheEnginesOwn),
    "check_choose_victim": (the_oldest, the_longest, the_newest, by_number),
}
