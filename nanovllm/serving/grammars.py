"""From the shape that an answer must have to an object that says which tokens may come next, by llguidance.

llguidance keeps two machines (https://github.com/guidance-ai/llguidance): a lexer of derivatives of regular expressions, made
lazily as the text goes on, and an Earley parser over what the lexer finds. To say which of a vocabulary's tokens may come
next, it walks the tree of all tokens' bytes and leaves out a branch at its first byte that nothing matches.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence as ListLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanovllm.errors import InvalidRequest, RequestFailed
from nanovllm.serving.grammar_vocabulary import read_vocabulary
from nanovllm.serving.json_schemas import compilable
from nanovllm.structured_outputs import StructuredOutputsParams
from nanovllm.utils.numbers import shown

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

    from nanovllm.serving.tokenizer import Tokenizer

# What one answer may cost. With llguidance's own limits, compiling may take more than a second.
LEXER_FUEL = 300_000
WHITESPACE = r"( |\n[ \t]{0,16})"  # between two tokens of JSON: a pattern without a limit lets a model write blanks for ever
FEWEST_FOR_THREADS = 4  # matchers: below, waking threads takes longer than a mask
MAX_CACHED = 128  # compiled grammars; those last used stay


class GrammarMatcher:
    """One answer's place in its grammar: the engine's `TokenMatcher`, by llguidance.

    Owns a matcher, which has taken in the tokens of the answer so far. executor: threads that fill masks, the compiler's.
    """

    def __init__(self, matcher: "LLMatcher", vocab_size: int, executor: "LLExecutor"):
        self._matcher, self._vocab_size, self._executor = matcher, vocab_size, executor

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
    def fill_bitmasks(cls, matchers: ListLike["GrammarMatcher"], bitmasks: NDArray[np.int32], rows: ListLike[int]
                      ) -> dict[int, RequestFailed]:
        """See `BatchMatcher`: by llguidance's threads, and without Python's lock."""
        if len(matchers) >= FEWEST_FOR_THREADS:
            matchers[0]._executor.unsafe_compute_mask_ptr([(matcher._matcher, row) for matcher, row in zip(matchers, rows)],
                                                          bitmasks.ctypes.data, bitmasks.strides[0], len(bitmasks))
        errors = {}
        for matcher, row in zip(matchers, rows):
            try:
                if len(matchers) >= FEWEST_FOR_THREADS:
                    matcher._check()
                else:
                    matcher.fill_bitmask(bitmasks[row])
            except RequestFailed as error:
                errors[row] = error
        return errors

    def advance(self, token_id: int) -> bool:
        """Take in the answer's next token. False, with nothing changed, when it may not come next."""
        if self._matcher.try_consume_tokens([token_id]) == 1:
            return True
        self._check()
        return False

    def num_allowed(self, token_ids: list[int]) -> int:
        """How many of these tokens may follow, one after the other. Takes none of them in."""
        return self._matcher.validate_tokens(token_ids) if token_ids else 0

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens taken in."""
        if num_tokens:
            self._matcher.rollback(num_tokens)
            self._check()

    def copy(self) -> "GrammarMatcher":
        """Another one at the same place, which goes its own way from here."""
        return GrammarMatcher(self._matcher.deep_copy(), self._vocab_size, self._executor)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestFailed(f"structured_outputs: its grammar cannot be followed any further "
                                f"({_reason(self._matcher.get_error())}); ask for a simpler shape")


class GrammarCompiler:
    """Compiles shapes for one model's vocabulary. Owns the grammars it has compiled, of which the last used stay.

    Owns the threads that fill the masks of its grammars, too.

    Any thread may call it. Nobody waits for a grammar that another thread compiles, nor does the interpreter: llguidance
    lets go of Python's lock meanwhile.

    tokenizer: None, or one without a Rust library behind it, compiles nothing. vocab_size: how many logits the model has.
    """

    def __init__(self, tokenizer: "Tokenizer | None", vocab_size: int, eos_token_ids: tuple[int, ...] = ()):
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos_token_ids
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._compiled: OrderedDict[StructuredOutputsParams, GrammarMatcher] = OrderedDict()
        self.num_compiled = 0

    def __repr__(self) -> str:
        return f"GrammarCompiler({len(self._compiled)} grammars of at most {MAX_CACHED}, {self.num_compiled} compiled)"

    def prepare(self) -> None:
        """Read the vocabulary, which a first request would pay for: with 49,000 tokens a third of a second of Python's lock."""
        try:
            with self._lock:
                self._get_ready()
        except InvalidRequest:  # a request with a shape is told
            pass

    def matcher(self, shape: StructuredOutputsParams) -> GrammarMatcher:
        """A matcher at the beginning of an answer of this shape.

        Raises InvalidRequest, naming the field, for a shape that cannot be compiled, or that no answer can have.
        """
        with self._lock:
            if known := self._compiled.get(shape):
                self._compiled.move_to_end(shape)
                return known.copy()
            vocabulary, executor = self._get_ready()
        compiled = self._compile(shape, vocabulary, executor)
        with self._lock:
            self.num_compiled += 1
            self._compiled[shape] = compiled
            while len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
            return compiled.copy()

    def _compile(self, shape: StructuredOutputsParams, vocabulary: "LLTokenizer", executor: "LLExecutor") -> GrammarMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(initial_lexer_fuel=LEXER_FUEL, verbose_errors=False)
        matcher = LLMatcher(vocabulary, grammar_of(shape), log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(shape, matcher.get_error())
        compiled = GrammarMatcher(matcher, self._vocab_size, executor)
        first = np.zeros(-(-self._vocab_size // 32), np.int32)
        try:
            compiled.fill_bitmask(first)
        except RequestFailed:
            raise _refused(shape, matcher.get_error()) from None
        for token in self._eos_token_ids:
            first[token // 32] &= ~np.int32(np.uint32(1 << token % 32).view(np.int32))
        if not first.any():
            raise _refused(shape, "no text has this shape, or none that the model's tokens can write")
        return compiled

    def _get_ready(self) -> tuple["LLTokenizer", "LLExecutor"]:
        from llguidance import LLExecutor

        self._vocabulary = self._vocabulary or self._read_vocabulary()
        self._executor = self._executor or LLExecutor()
        return self._vocabulary, self._executor

    def _read_vocabulary(self) -> "LLTokenizer":
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InvalidRequest("structured_outputs: must be None for a model without a fast tokenizer, whose tokens' bytes "
                                 "are not known; add a tokenizer.json to the model's folder.")
        try:
            return read_vocabulary(backend, self._vocab_size, self._eos_token_ids)
        except Exception as error:  # the class that Rust's errors have
            raise InvalidRequest(f"structured_outputs: must be None for this model, whose tokenizer llguidance cannot read "
                                 f"({_reason(str(error))}); leave it out.") from error


def grammar_of(shape: StructuredOutputsParams) -> str:
    """What llguidance compiles, as its own JSON text. Refuses nothing."""
    from llguidance import LLMatcher

    if shape.schema is not None:
        return LLMatcher.grammar_from_json_schema(json.dumps(compilable(json.loads(shape.schema))), overrides={
            "whitespace_flexible": not shape.disable_any_whitespace,
            "whitespace_pattern": None if shape.disable_any_whitespace else WHITESPACE})
    if shape.regex is not None:
        return LLMatcher.grammar_from_regex(shape.regex)
    if shape.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(map(_escaped, shape.choice)))
    return LLMatcher.grammar_from_lark(str(shape.grammar))


def _escaped(text: str) -> str:
    """A regular expression that matches this text alone."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _refused(shape: StructuredOutputsParams, why: str) -> InvalidRequest:
    name = shape.shape
    return InvalidRequest(f"structured_outputs.{name}={shown(getattr(shape, name))}: must be a shape that can be compiled and "
                          f"that some answer has ({_reason(why)}); ask for another or a simpler one.")


def _reason(message: str) -> str:
    """The line of one of llguidance's messages that says what is wrong: of a bad expression, not the first."""
    lines = message.strip().splitlines() or [""]
    line = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")[:300]
    # Its words for a matcher that can take no token.
    return "no text has this shape, or none that ends" if line in ("NoExtension", "NoExtensionBias") else line
