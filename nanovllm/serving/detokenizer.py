"""Tokens back to text, a piece at a time, without ever splitting a character."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch, which pictures of a live engine do not need
    from nanovllm.serving.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns a growing list of token ids into text deltas.

    A byte-level BPE token may end in the middle of a character, and how it decodes depends on its neighbours. So this
    keeps a window of tokens whose text is not out yet, decodes it together with the tokens before it, and releases
    text only once it does not end in the replacement character that stands for an unfinished one.
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
        if len(now) <= len(before) or (now.endswith("\ufffd") and not final):
            return ""
        delta = now[len(before):]
        self._context, self._done = self._done, len(self._ids)
        self.text += delta
        return delta

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens,
                                      clean_up_tokenization_spaces=False)
