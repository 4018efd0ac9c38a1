"""Solutions of chapter 05."""

from ..ch05 import Admission


def can_ever_fit(num_prompt, max_tokens, max_model_len, num_blocks, block_size):
    longest = min(num_prompt + max_tokens, max_model_len)
    return num_prompt < max_model_len and longest - 1 <= num_blocks * block_size


class MyAdmission(Admission):
    def room_for(self, seq):
        manager = self.block_manager
        promised = sum(manager.num_new_blocks(s, len(s)) for s in self.running)
        return manager.num_new_blocks(seq, len(seq)) + promised + 4 * len(self.running) <= manager.num_free_blocks


def choose_victim(candidates):
    """Of the three newest the one with least to compute again. It saves about one token in a hundred."""
    return min(reversed(candidates[-3:]), key=lambda seq: seq.num_computed_tokens)
