"""Chapter 16: a mask that forbids more, the tokens that an automaton allows, and a matcher that the engine accepts.

An automaton is a list of moves, one dict per state: character -> the state behind it. State 0 is the beginning, and the text
may end in the states of `ends`.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from nanovllm import LLM, SamplingParams, StructuredOutputsParams
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.sequence import Sequence

from .verdict import check, require

PROMPT = "Once upon a time there was a "
REGEX = "(fox|hen)!*(in|on)?"  # what MOVES and ENDS match
MOVES: list[dict[str, int]] = [
    {"f": 1, "h": 3}, {"o": 2}, {"x": 5}, {"e": 4}, {"n": 5}, {"!": 5, "i": 6, "o": 6}, {"n": 7}, {}]
ENDS = {5, 7}
WORDS = ["f", "fo", "fox", "foxes", "x", "ox", "xi", "!", "!!", "!in", "x!on", "no", "n", "i", "io", " fox", "hen", "he", ""]


def texts_of(llm: LLM) -> list[str]:
    """The text of every token; empty for a special one, which is no text of an answer."""
    special = set(llm.tokenizer.all_special_ids) | set(llm.config.eos_token_ids)
    return ["" if token in special else llm.tokenizer.decode([token]) for token in range(llm.config.hf_config.vocab_size)]


def end_of(moves: list[dict[str, int]], state: int, text: str) -> int | None:
    """The state behind a text; None where the automaton has no move."""
    for char in text:
        if char not in moves[state]:
            return None
        state = moves[state][char]
    return state


@check("forbid some more")
def check_without(without):
    """without(bits, tokens) -> a new mask that forbids these tokens, too. bits: int32, token 32 w + i is bit i of w."""
    cases = [([0, 1, 2], [1]), ([5, 40, 69], [40]), ([5, 40, 69], [41]), (range(96), [31]), (range(96), [0, 63, 95]),
             ([32], [32, 32]), ([7], []), ([], [3])]
    for allowed, tokens in cases:
        given = _mask(allowed, 3)
        bits = given.copy()
        got = without(bits, list(tokens))
        right = [token for token in allowed if token not in tokens]
        told = f"allowed {_some(map(str, allowed))}, forbidden then {tokens}"
        require(isinstance(got, np.ndarray) and got.dtype == np.int32 and got.shape == given.shape,
                f"{told}: three int32 words are wanted, not {got!r}.")
        found = [token for token in range(96) if int(got[token // 32]) >> token % 32 & 1]
        hint = f"{told}: {_some(map(str, right))} remain, not {_some(map(str, found))}."
        if set(found) > set(allowed):
            hint += " A token that was forbidden before has become an allowed one."
        elif len(right) - len(found) > 5:
            hint += " One bit of a word is a token, the others are other tokens."
        require(found == right, hint)
        require((bits == given).all(), f"{told}: the new mask is right, and the given one was changed.")
    return f"{len(cases)} masks, with bits at both ends of a word."


def _mask(tokens: Iterable[int], num_words: int) -> np.ndarray:
    words = np.zeros(num_words, np.uint32)
    for token in tokens:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words.view(np.int32)


class CountedMoves(dict):
    """The moves of a state, which count how often they are asked for a character."""

    def __init__(self, moves: dict[str, int], asked: list[str]) -> None:
        super().__init__(moves)
        self.asked = asked

    def __contains__(self, char: object) -> bool:
        self.asked.append(str(char))
        return super().__contains__(char)

    def __getitem__(self, char: str) -> int:
        self.asked.append(char)
        return super().__getitem__(char)

    def get(self, char: str, default: Any = None) -> Any:
        self.asked.append(char)
        return super().get(char, default)


# Tokens that begin alike: a walk through each of them from its start asks many times what a tree asks once.
ALIKE = [*WORDS, *("!" * n for n in range(3, 33)), *(f"fox!{'i' * n}" for n in range(12)), *(f"zebra{n}" for n in range(120)),
         *(f"hen{'!' * n}on" for n in range(1, 20))]


def beginnings(moves: list[dict[str, int]], state: int, vocabulary: list[str]) -> int:
    """How many different beginnings of tokens have to be looked at: those whose own beginning is alive."""
    return len({text[:n + 1] for text in vocabulary for n in range(len(text)) if end_of(moves, state, text[:n]) is not None})


@check("allowed tokens")
def check_allowed_tokens(allowed_tokens):
    """allowed_tokens(moves, state, vocabulary) -> the ids of the tokens that keep the automaton alive, in rising order."""
    for words in (WORDS, ALIKE):
        for state in range(len(MOVES)):
            right = [i for i, text in enumerate(words) if text and end_of(MOVES, state, text) is not None]
            asked: list[str] = []
            got = list(allowed_tokens([CountedMoves(m, asked) for m in MOVES], state, list(words)))
            require(got == right, _wrong_tokens(got, right, state, words))
            most = 3 * beginnings(MOVES, state, words) + 3  # a look, a move, and one to spare
            require(words is WORDS or len(asked) <= most, f"{REGEX} in state {state}: {len(words)} tokens have {most // 3 - 1} "
                    f"different beginnings to look at, and the moves were asked {len(asked)} times. Tokens that begin alike "
                    "must share the walk.")
    return f"{len(MOVES)} states with {len(WORDS)} and with {len(ALIKE)} tokens, no beginning looked at twice."


def _wrong_tokens(got: list[int], right: list[int], state: int, words: list[str]) -> str:
    if sorted(got) == right:
        return f"{REGEX} in state {state}: the right tokens, and they must be in rising order."
    more = [words[i] for i in got if i not in right]
    less = [words[i] for i in right if i not in got]
    hint = f"{REGEX} in state {state} allows {_some(words[i] for i in right)}"
    hint += f", and not {_some(more)}" * bool(more) + f"; you left out {_some(less)}" * bool(less) + "."
    if "" in more:
        hint += " A token without text moves nothing on: an answer could go on with it for ever."
    elif any(text[0] in MOVES[state] for text in more):
        hint += " Every character of a token must find a move."
    elif less:
        hint += " A token need not reach an end of the pattern, and may go through one."
    return hint


def _some(texts: Iterable[str]) -> str:
    texts = list(texts)
    return str(texts) if len(texts) < 14 else f"{str(texts[:12])[:-1]}, … {len(texts) - 12} more]"


class Exclamations(Drafter):
    """Always guesses token 0, which is "!" in the offline model's vocabulary."""

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        return [[0] * limit for limit in limits]


@cache
def engine(drafting: bool = False) -> LLM:
    return LLM(device="cpu", num_kvcache_blocks=64, enforce_eager=True, drafter=Exclamations() if drafting else None)


def served(Matcher: Any, drafting: bool, **params: Any) -> str:
    """The text of an answer of the engine, held to REGEX by the reader's matcher."""
    llm = engine(drafting)
    eos = llm.config.eos_token_ids
    shape = StructuredOutputsParams(regex=REGEX)
    prompt = llm.tokenizer.encode(PROMPT + "fox!!!!!!!!!! " * 4)
    seq = llm.engine.add_request(prompt, SamplingParams(structured_outputs=shape, seed=1, max_tokens=12, **params),
                                 matcher=Matcher(MOVES, ENDS, texts_of(llm), eos))
    while llm.engine.has_unfinished:
        llm.engine.step()
    require(seq.error is None, f"the engine ended the answer with an error: {seq.error}")
    text = llm.tokenizer.decode([token for token in seq.token_ids[seq.num_prompt_tokens:] if token not in eos])
    complete = re.fullmatch(REGEX, text) is not None
    require(complete or (seq.finish_reason == "length" and end_of(MOVES, 0, text) is not None),
            f"served, and the answer is {text!r}, which {REGEX} does not match.")
    return text


@check("a matcher that serves")
def check_Matcher(Matcher):
    """Matcher(moves, ends, vocabulary, eos_token_ids) with is_finished, fill_bitmask, advance, num_allowed and rollback."""
    words = [*WORDS, *("" for _ in range(40)), "in"]  # 60 tokens: two words of bits
    eos = len(WORDS)

    def mask_of(matcher: Any) -> list[str]:
        bits = np.full(2, -1, np.int32)  # what was there before must not stay
        matcher.fill_bitmask(bits)
        found = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        return ["the end" if i == eos else words[i] if i < len(words) else f"token {i}" for i in found.tolist()]

    def same_mask(matcher: Any, state: int, after: str) -> None:
        right = [words[i] for i in range(len(words)) if words[i] and end_of(MOVES, state, words[i]) is not None]
        if state in ENDS:
            right.append("the end")
        got = mask_of(matcher)
        require(sorted(got) == sorted(right), f"{after}: the mask must allow {sorted(right)}, not {sorted(got)}.")

    one = Matcher([dict(m) for m in MOVES], set(ENDS), list(words), (eos,))
    same_mask(one, 0, "at the beginning")
    require(one.advance(words.index("no")) is False, "at the beginning, advance must return False for 'no'.")
    same_mask(one, 0, "after advance refused 'no', nothing may have changed")
    require(one.num_allowed([words.index(t) for t in ("fo", "x", "!", "no")]) == 3, "of 'fo', 'x', '!', 'no' three may follow.")
    same_mask(one, 0, "num_allowed takes nothing in; after it")
    for text in ("fo", "x!on"):
        require(not one.is_finished, f"before {text!r} something can follow: is_finished must be False.")
        require(one.advance(words.index(text)) is True, f"advance must return True for {text!r}.")
    require(one.is_finished, "after 'fox!on' nothing can follow: is_finished must be True.")
    one.rollback(1)
    require(not one.is_finished, "rollback(1) from 'fox!on' goes back to 'fo', where something can follow.")
    same_mask(one, 2, "after rollback(1) to 'fo'")
    one.rollback(1)
    same_mask(one, 0, "after a second rollback(1), to the beginning")
    require(one.advance(words.index("fox")) and not one.is_finished, "after 'fox' more can follow, so it is not finished.")
    same_mask(one, 5, "after 'fox'")
    require(one.advance(eos) is True, "after 'fox' the answer may end: advance must return True for the end-of-sequence token.")
    require(Matcher(MOVES, ENDS, words, (eos,)).advance(eos) is False, "at the beginning the answer may not end.")
    texts = []
    for params in (dict(temperature=0), dict(temperature=1, logit_bias={0: 30})):
        text, guessed = (served(Matcher, drafting, **params) for drafting in (False, True))
        require(text == guessed, f"served ({params}): {text!r}, and with guesses {guessed!r}. The engine takes guesses in with "
                                 "advance to mask what comes behind them, and takes them back with rollback.")
        texts.append(text)
    return f"four answers of the engine, with guesses and without: {', '.join(map(repr, texts))}."
