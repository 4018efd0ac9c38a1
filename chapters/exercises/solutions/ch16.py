"""Solutions of chapter 16."""

import numpy as np


def without(bits, tokens):
    words = bits.copy().view(np.uint32)
    for token in tokens:
        words[token // 32] &= ~np.uint32(1 << token % 32)
    return words.view(np.int32)


def allowed_tokens(moves, state, vocabulary):
    tree = ({}, [])  # of characters: the branches, and the tokens that end here
    for token, text in enumerate(vocabulary):
        branches, tokens = tree
        for char in text:
            branches, tokens = branches.setdefault(char, ({}, []))
        if text:
            tokens.append(token)
    found, todo = [], [(tree, state)]
    while todo:
        (branches, tokens), here = todo.pop()
        found += tokens
        for char, branch in branches.items():
            if char in moves[here]:
                todo.append((branch, moves[here][char]))
    return sorted(found)


class Matcher:
    def __init__(self, moves, ends, vocabulary, eos_token_ids):
        self.moves, self.ends, self.vocabulary, self.eos = moves, ends, vocabulary, eos_token_ids
        self.states = [0]  # behind each token taken in

    @property
    def is_finished(self):
        return self.states[-1] in self.ends and not self.moves[self.states[-1]]

    def fill_bitmask(self, bitmask):
        words = np.zeros(len(bitmask), np.uint32)
        tokens = allowed_tokens(self.moves, self.states[-1], self.vocabulary)
        for token in tokens + (list(self.eos) if self.states[-1] in self.ends else []):
            words[token // 32] |= np.uint32(1 << token % 32)
        bitmask[:] = words.view(np.int32)

    def advance(self, token_id):
        state = self.states[-1]
        if token_id in self.eos:
            if state not in self.ends:
                return False
        elif token_id not in allowed_tokens(self.moves, state, self.vocabulary):
            return False
        else:
            for char in self.vocabulary[token_id]:
                state = self.moves[state][char]
        self.states.append(state)
        return True

    def num_allowed(self, token_ids):
        taken = 0
        while taken < len(token_ids) and self.advance(token_ids[taken]):
            taken += 1
        self.rollback(taken)
        return taken

    def rollback(self, num_tokens):
        del self.states[len(self.states) - num_tokens:]
