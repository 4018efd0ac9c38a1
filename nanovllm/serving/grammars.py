"""From the shape that an answer must have to an object that says which tokens may come next, by llguidance.

llguidance keeps two machines (https://github.com/guidance-ai/llguidance): a lexer of derivatives of regular expressions, made
lazily as the text goes on, and an Earley parser over what the lexer finds. To say which of a vocabulary's tokens may come
next, it walks the tree of all tokens' bytes and leaves out a branch at its first byte that nothing matches.
"""

import json
import os
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from nanovllm.errors import InvalidRequest
from nanovllm.serving.grammar_matcher import CompiledGrammar, GrammarMatcher, reason
from nanovllm.serving.grammar_vocabulary import read_vocabulary
from nanovllm.serving.json_schemas import compilable
from nanovllm.structured_outputs import StructuredOutputsParams
from nanovllm.utils.numbers import shown

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLTokenizer

    from nanovllm.serving.tokenizer import Tokenizer

# What one answer may cost. With llguidance's own limits, compiling may take more than a second.
LEXER_FUEL = 300_000
WHITESPACE = r"( |\n[ \t]{0,16})"  # between two tokens of JSON: a pattern without a limit lets a model write blanks for ever
MAX_CACHED = 128  # compiled grammars; those last used stay
MAX_THREADS = 32
FEWEST_TOKENS_FOR_THREADS = 16_384  # of a vocabulary: a mask of fewer takes no longer than waking a thread
LEXERS_PER_THREAD = 4  # with one for each, threads that divide a step's masks often meet at one
COSTLY = 0.02  # seconds of a processor: what takes longer to compile has one lexer


class GrammarCompiler:
    """Compiles shapes for one model's vocabulary. Owns the grammars it has compiled, of which the last used stay.

    Owns the threads that fill the masks of its grammars, too. num_threads: None has four for five processors, or one where the
    vocabulary is small.

    Any thread may call it. Nobody waits for a grammar that another thread compiles, nor does the interpreter: llguidance
    lets go of Python's lock meanwhile.

    tokenizer: None, or one without a Rust library behind it, compiles nothing. vocab_size: how many logits the model has.
    """

    def __init__(self, tokenizer: "Tokenizer | None", vocab_size: int, eos_token_ids: tuple[int, ...] = (),
                 num_threads: int | None = None):
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos_token_ids
        most = _num_processors() * 4 // 5 if vocab_size >= FEWEST_TOKENS_FOR_THREADS else 1
        self._num_threads = num_threads or max(1, min(MAX_THREADS, most))
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._compiled: OrderedDict[StructuredOutputsParams, CompiledGrammar] = OrderedDict()
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
        return self._grammar(shape).matcher()

    def _grammar(self, shape: StructuredOutputsParams) -> CompiledGrammar:
        with self._lock:
            if known := self._compiled.get(shape):
                self._compiled.move_to_end(shape)
                return known
            vocabulary, executor = self._get_ready()
        compiled = self._compile(shape, vocabulary, executor)
        with self._lock:
            self.num_compiled += 1
            compiled = self._compiled.setdefault(shape, compiled)  # another thread's, if that was faster: one is enough to keep
            self._compiled.move_to_end(shape)
            while len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
            return compiled

    def _compile(self, shape: StructuredOutputsParams, vocabulary: "LLTokenizer", executor: "LLExecutor | None"
                 ) -> CompiledGrammar:
        from llguidance import LLMatcher, LLParserLimits

        def compiled() -> LLMatcher:
            limits = LLParserLimits(initial_lexer_fuel=LEXER_FUEL, verbose_errors=False)
            return LLMatcher(vocabulary, grammar_of(shape), log_level=0, limits=limits)

        before, matcher = time.thread_time(), compiled()
        first = np.zeros(-(-self._vocab_size // 32), np.int32)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(first.ctypes.data, first.nbytes)
        if matcher.is_error():
            raise _refused(shape, matcher.get_error())
        for token in self._eos_token_ids:
            first[token // 32] &= ~np.int32(np.uint32(1 << token % 32).view(np.int32))
        if not first.any():
            raise _refused(shape, "no text has this shape, or none that the model's tokens can write")
        several = self._num_threads > 1 and time.thread_time() - before < COSTLY
        most_lexers = LEXERS_PER_THREAD * self._num_threads if several else 1
        return CompiledGrammar(matcher, compiled, most_lexers, executor)

    def _get_ready(self) -> tuple["LLTokenizer", "LLExecutor | None"]:
        from llguidance import LLExecutor

        self._vocabulary = self._vocabulary or self._read_vocabulary()
        if self._executor is None and self._num_threads > 1:
            self._executor = LLExecutor(self._num_threads)
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
                                 f"({reason(str(error))}); leave it out.") from error


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


def _num_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refused(shape: StructuredOutputsParams, why: str) -> InvalidRequest:
    name = shape.shape
    return InvalidRequest(f"structured_outputs.{name}={shown(getattr(shape, name))}: must be a shape that can be compiled and "
                          f"that some answer has ({reason(why)}); ask for another or a simpler one.")
