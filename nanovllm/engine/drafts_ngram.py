"""Guesses looked up in the text so far: what followed the last few tokens when they stood there before. Imports no torch."""

from typing import Any

from nanovllm.engine.drafts import Drafter
from nanovllm.engine.sequence import Sequence
from nanovllm.utils.checks import check
from nanovllm.utils.numbers import is_int


class NgramIndex:
    """Where each run of `shortest` to `longest` tokens of one growing text ended last. Owns a copy of no token.

    Each token is entered once, when its successor is known; a look-up is a few dictionary reads, however long the text.
    """

    def __init__(self, shortest: int, longest: int):
        self.shortest = shortest
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in range(longest, shortest - 1, -1)}
        self._num_entered = dict.fromkeys(self._ends, 0)

    def propose(self, tokens: list[int], limit: int) -> list[int]:
        """What followed the last occurrence of the longest run that ends `tokens`, at most `limit` tokens.

        tokens: the text of the last call, perhaps with more behind it.
        """
        for n in self._ends:
            self._enter(tokens, n)
        for n, ends in self._ends.items():
            if (last := ends.get(tuple(tokens[-n:]))) is not None:
                # A text that goes round in circles is shorter than the guess: let the guess go on from itself.
                period, found = len(tokens) - last, tokens[last:last + limit]
                while len(found) < limit:
                    found.append(found[len(found) - period])
                return found
        return []

    def finds(self, tokens: list[int]) -> bool:
        """Whether `propose` would: a longer run stood only where the shortest one stood."""
        self._enter(tokens, self.shortest)
        return tuple(tokens[-self.shortest:]) in self._ends[self.shortest]

    def _enter(self, tokens: list[int], n: int) -> None:
        ends = self._ends[n]
        for end in range(max(n, self._num_entered[n] + 1), len(tokens)):  # the run that ends the text has no successor yet
            ends[tuple(tokens[end - n:end])] = end
        self._num_entered[n] = max(self._num_entered[n], len(tokens) - 1)


class NgramDrafter(Drafter):
    """Prompt lookup (Saxena 2023; "n-gram" in vLLM): no second model, and right where an answer repeats what it was given.

    Good for edits, summaries, code and anything quoted; for other texts it mostly finds nothing, and that costs nothing.
    Owns an index for each sequence that drafted. Raises InvalidArgument for lengths of runs that are none.
    """

    def __init__(self, shortest: int = 2, longest: int = 4):
        check(is_int(shortest) and is_int(longest) and 1 <= shortest <= longest, "shortest, longest", (shortest, longest),
              "whole numbers with 1 <= shortest <= longest", "pass NgramDrafter(2, 4)")
        self.shortest, self.longest = shortest, longest
        self._indexes: dict[int, NgramIndex] = {}

    def __repr__(self) -> str:
        return f"NgramDrafter(runs of {self.shortest} to {self.longest} tokens, {len(self._indexes)} sequences)"

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        return [self._index_of(seq).propose(seq.token_ids, limit) for seq, limit in zip(sequences, limits)]

    def likely(self, seq: Sequence) -> bool:
        return self._index_of(seq).finds(seq.token_ids)

    def _index_of(self, seq: Sequence) -> NgramIndex:
        index = self._indexes.get(seq.seq_id)
        if index is None:
            index = self._indexes[seq.seq_id] = NgramIndex(self.shortest, self.longest)
        return index

    def on_device(self) -> Any:
        from nanovllm.engine.device_drafters import LookUp  # which needs torch

        return LookUp(self.shortest, self.longest)

    def forget(self, seq_id: int) -> None:
        self._indexes.pop(seq_id, None)
