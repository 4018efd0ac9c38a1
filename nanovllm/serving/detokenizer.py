"""Tokens back to text, a piece at a time, without ever splitting a character."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch, which pictures of a live engine do not need
    from nanovllm.serving.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character, or none yet
MOST_MISSING = 3  # bytes of a character after its first
MOST_SILENT = 16  # tokens without any text that are kept in case they turn out to have some


class IncrementalDetokenizer:
    """Turns a growing list of token ids into text deltas.

    A byte-level BPE token may end in the middle of a character, and how it decodes depends on its neighbours. So this
    keeps a window of tokens whose text is not out yet, decodes it together with the tokens before it, and releases
    text only once it does not end in the replacement character that stands for an unfinished one. Bytes that no character
    can be made of are released as soon as that is known, so that the window, and what a token costs, stays small.
    """

    def __init__(self, tokenizer: "Tokenizer", skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._context = 0  # ids from here on give the decoder its left context ...
        self._done = 0     # ... and ids from here on have not been emitted
        self.text = ""

    def push(self, token_ids: list[int], final: bool = False) -> str:
        """Take in new tokens; returns the text they complete ("" while a character is unfinished). `final` flushes."""
        self._ids += token_ids
        before = self._decode(self._ids[self._context:self._done])
        now = self._decode(self._ids[self._context:])
        if len(now) > len(before) and (final or not now.endswith(UNFINISHED)):
            return self._release(now[len(before):], len(self._ids))
        if now == before:  # special tokens, which are left out
            if len(self._ids) - self._done > MOST_SILENT:
                del self._ids[self._done:]
            return ""
        return self._settled(before, now)

    def _settled(self, before: str, now: str) -> str:
        """The text before which no character is unfinished any more, whatever comes: bytes enough for it have come since."""
        end, tries = len(self._ids) - MOST_MISSING, MOST_MISSING + 1
        while end > self._done and tries:
            if len(self._decode(self._ids[end:])) >= MOST_MISSING:
                tries -= 1
                settled = self._decode(self._ids[self._context:end])
                if now.startswith(settled) and len(settled) > len(before):
                    return self._release(settled[len(before):], end)
            end -= 1
        return ""

    def _release(self, delta: str, done: int) -> str:
        self._context, self._done = self._done, done
        self.text += delta
        return delta

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens,
                                      clean_up_tokenization_spaces=False)
