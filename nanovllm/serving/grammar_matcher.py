"""One answer's place in its grammar, and the grammar compiled as often as threads may follow it at once.

Copies of one of llguidance's matchers share its lexer, which learns as it goes: what one has met, the others know. They share a
lock on it, too, held as long as a mask takes. So however many threads there are, copies of one matcher fill their masks one
after the other, and only matchers that were compiled apart fill theirs at the same time.
"""

import threading
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from nanovllm.engine.token_matcher import fill_with_drafts
from nanovllm.errors import RequestFailed

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

FEWEST_FOR_THREADS = 4  # matchers: below, waking threads takes longer than a mask
MOST_RUNS = 4096  # of forced tokens, remembered of a lexer


class CompiledGrammar:
    """A grammar to take matchers from. Any thread may.

    Owns a matcher at its beginning, the source of copies, for each lexer: one at first, and another whenever every lexer has
    a matcher in use, up to `most_lexers`. compile_again: makes a matcher with a lexer of its own, takes as long as compiling
    does. executor: threads that fill masks.
    """

    def __init__(self, first: "LLMatcher", compile_again: Callable[[], "LLMatcher"], most_lexers: int,
                 executor: "LLExecutor | None"):
        self._compile_again, self._most, self._executor = compile_again, most_lexers, executor
        self._lock = threading.Lock()
        self._lexers = [_Lexer(first)]
        self._num_planned = 1

    @property
    def num_lexers(self) -> int:
        return len(self._lexers)

    def matcher(self) -> "GrammarMatcher":
        """One at the beginning of an answer, by the lexer that has the fewest others to serve."""
        with self._lock:
            lexer = min(self._lexers, key=lambda each: len(each.in_use))
            if not lexer.in_use or self._num_planned >= self._most:
                return GrammarMatcher(lexer.source.deep_copy(), lexer, self._executor)
            self._num_planned += 1
        try:
            another = _Lexer(self._compile_again())  # nobody waits for it meanwhile
            with self._lock:
                self._lexers.append(another)
        except BaseException:  # an interrupt, too
            with self._lock:
                self._num_planned -= 1  # else its place would stay empty as long as the grammar is kept
            raise
        return GrammarMatcher(another.source.deep_copy(), another, self._executor)


class _Lexer:
    """What copies of one matcher share. source: stays at the beginning. in_use: the copies that somebody still has.

    forced: how forced text is cut into tokens, by the token before it: to ask llguidance takes twenty times as long.
    """

    def __init__(self, source: "LLMatcher"):
        self.source = source
        self.forced: dict[tuple[int, bytes], list[int]] = {}
        self.in_use: WeakSet[GrammarMatcher] = WeakSet()


class GrammarMatcher:
    """One answer's place in its grammar: the engine's `TokenMatcher`, by llguidance.

    Owns a matcher, which has taken in the tokens of the answer so far. lexer: what it shares with other matchers. executor:
    threads that fill masks; None where there is but one.
    """

    def __init__(self, matcher: "LLMatcher", lexer: _Lexer, executor: "LLExecutor | None"):
        self._matcher, self._lexer, self._executor = matcher, lexer, executor
        self._last_token: int | None = -1  # None where it is not known
        lexer.in_use.add(self)

    def __repr__(self) -> str:
        return f"GrammarMatcher({self._matcher.stop_reason()}, is_accepting={self.is_accepting})"

    @property
    def is_finished(self) -> bool:
        """Whether the answer has its shape, and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def is_accepting(self) -> bool:
        """Whether the answer has its shape, and may end here."""
        return self._matcher.is_accepting()

    def fill_bitmask(self, bitmask: NDArray[np.int32]) -> None:
        """Set the bit of every token that may come next, and clear all others; bit i of word w is token 32 w + i.

        bitmask: [ceil(vocab_size / 32)] int32, contiguous. Tokens that end a sequence are among them where the answer may
        end. Raises RequestFailed when the grammar is too complex to say.
        """
        self._matcher.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes)
        self._check()

    @classmethod
    def fill_bitmasks(cls, matchers: ListLike["GrammarMatcher"], bitmasks: NDArray[np.int32], rows: ListLike[int],
                      drafts: ListLike[list[int]]) -> dict[int, RequestFailed]:
        """See `BatchMatcher`: by llguidance's threads, and without Python's lock, where lexers are several."""
        executor = matchers[0]._executor
        if len(matchers) < FEWEST_FOR_THREADS or len({id(matcher._lexer) for matcher in matchers}) == 1:
            executor = None
        if executor is not None:
            # A thread is given neighbors in this list. Those of one lexer would wait for each other elsewhere.
            work = sorted(zip(matchers, rows, drafts), key=lambda each: id(each[0]._lexer))
            target = bitmasks.ctypes.data, bitmasks.strides[0], len(bitmasks)
            if alone := [(matcher._matcher, row) for matcher, row, tokens in work if not tokens]:
                executor.unsafe_compute_mask_ptr(alone, *target)
            if drafting := [(matcher._matcher, row, tokens) for matcher, row, tokens in work if tokens]:
                for _, row, tokens in drafting:
                    bitmasks[row + 1:row + 1 + len(tokens)] = -1  # behind a wrong draft nothing is written
                executor.unsafe_compute_mask_ptr_with_draft_token(drafting, *target)
        errors = {}
        for matcher, row, tokens in zip(matchers, rows, drafts):
            try:
                if executor is not None:
                    matcher._check()
                else:
                    fill_with_drafts(matcher, bitmasks[row:row + 1 + len(tokens)], tokens)
            except RequestFailed as error:
                errors[row] = error
        return errors

    def advance(self, token_id: int) -> bool:
        """Take in the answer's next token. False, with nothing changed, when it may not come next."""
        if self._matcher.try_consume_tokens([token_id]) == 1:
            self._last_token = token_id
            return True
        self._check()
        return False

    def num_allowed(self, token_ids: list[int]) -> int:
        """How many of these tokens may follow, one after the other. Takes none of them in."""
        return self._matcher.validate_tokens(token_ids) if token_ids else 0

    def forced_tokens(self, most: int) -> list[int]:
        """See `ForcingMatcher.forced_tokens`: in JSON the names of properties and the marks around them."""
        if not (text := self._matcher.compute_ff_bytes()):
            return []
        if self._last_token is None:
            return self._matcher.compute_ff_tokens()[:most]
        key, known = (self._last_token, text), self._lexer.forced
        if (tokens := known.get(key)) is None:
            if len(known) >= MOST_RUNS:
                known.clear()
            tokens = known[key] = self._matcher.compute_ff_tokens()
        return tokens[:most]

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens taken in."""
        if num_tokens:
            self._last_token = None
            self._matcher.rollback(num_tokens)
            self._check()

    def copy(self) -> "GrammarMatcher":
        """Another one at the same place, which goes its own way from here."""
        other = GrammarMatcher(self._matcher.deep_copy(), self._lexer, self._executor)
        other._last_token = self._last_token
        return other

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestFailed(f"structured_outputs: its grammar cannot be followed any further "
                                f"({reason(self._matcher.get_error())}); ask for a simpler shape")


def reason(message: str) -> str:
    """The line of one of llguidance's messages that says what is wrong: of a bad expression, not the first."""
    lines = message.strip().splitlines() or [""]
    line = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")[:300]
    # Its words for a matcher that can take no token.
    return "no text has this shape, or none that ends" if line in ("NoExtension", "NoExtensionBias") else line
