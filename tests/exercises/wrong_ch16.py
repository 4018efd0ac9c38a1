"""Plausible wrong answers to chapter 16: name of the check -> answers that must fail it, each with a hint of its own."""

import numpy as np

from chapters.exercises.solutions.ch16 import Matcher


def flips_the_bits(bits, tokens):
    words = bits.copy().view(np.uint32)
    for token in tokens:
        words[token // 32] ^= np.uint32(1 << token % 32)
    return words.view(np.int32)


def forbids_the_whole_word(bits, tokens):
    words = bits.copy()
    words[[token // 32 for token in tokens]] = 0
    return words


def changes_what_it_was_given(bits, tokens):
    words = bits.view(np.uint32)
    for token in tokens:
        words[token // 32] &= ~np.uint32(1 << token % 32)
    return bits


def counts_bits_from_the_top(bits, tokens):
    words = bits.copy().view(np.uint32)
    for token in tokens:
        words[token // 32] &= ~np.uint32(1 << (31 - token % 32))
    return words.view(np.int32)


def a_mask_of_these_alone(bits, tokens):
    words = np.full(len(bits), 0xFFFFFFFF, np.uint32)
    for token in tokens:
        words[token // 32] &= ~np.uint32(1 << token % 32)
    return words.view(np.int32)


def looks_at_the_first_character(moves, state, vocabulary):
    return [i for i, text in enumerate(vocabulary) if text and text[0] in moves[state]]


def wants_the_end(moves, state, vocabulary):
    def ends_well(text):
        here = state
        for char in text:
            here = moves[here].get(char)
            if here is None:
                return False
        return bool(text) and here in (5, 7)

    return [i for i, text in enumerate(vocabulary) if ends_well(text)]


def allows_tokens_without_text(moves, state, vocabulary):
    def survives(text):
        here = state
        for char in text:
            here = moves[here].get(char)
            if here is None:
                return False
        return True

    return [i for i, text in enumerate(vocabulary) if survives(text)]


def walks_through_each_token(moves, state, vocabulary):
    def survives(text):
        here = state
        for char in text:
            if char not in moves[here]:
                return False
            here = moves[here][char]
        return text != ""

    return [i for i, text in enumerate(vocabulary) if survives(text)]


def in_the_order_of_the_tree(moves, state, vocabulary):
    from chapters.exercises.solutions.ch16 import allowed_tokens

    return sorted(allowed_tokens(moves, state, vocabulary), key=lambda i: vocabulary[i])


class NeverRollsBack(Matcher):
    def rollback(self, num_tokens):
        pass


class KeepsOldBits(Matcher):
    def fill_bitmask(self, bitmask):
        old = bitmask.copy()
        super().fill_bitmask(bitmask)
        bitmask |= old


class NeverEnds(Matcher):
    @property
    def is_finished(self):
        return False


class ForgetsTheEndToken(Matcher):
    def fill_bitmask(self, bitmask):
        eos, self.eos = self.eos, ()
        super().fill_bitmask(bitmask)
        self.eos = eos


WRONG = {
    "check_without": [flips_the_bits, forbids_the_whole_word, changes_what_it_was_given, counts_bits_from_the_top,
                      a_mask_of_these_alone],
    "check_allowed_tokens": [looks_at_the_first_character, wants_the_end, allows_tokens_without_text,
                             walks_through_each_token, in_the_order_of_the_tree],
    "check_Matcher": [NeverRollsBack, KeepsOldBits, NeverEnds, ForgetsTheEndToken],
}
