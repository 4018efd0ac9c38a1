"""A model's vocabulary as grammars read it: the bytes of every token, and which tokens no text is made of.

llguidance takes each added token in angle brackets for a special one. But `<tool_call>` and `<think>` are texts to a model's
tokenizer (its `special` is false), and grammars have to write them. Where a grammar leaves no choice, llguidance asks the
tokenizer how the text is cut, hears of the mark's token, allows that one alone, and then refuses it. So such marks are told to
it as the texts that they are.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def read_vocabulary(backend: Any, vocab_size: int, eos_token_ids: tuple[int, ...]) -> "LLTokenizer":
    """backend: a `tokenizers.Tokenizer`. vocab_size: how many logits the model has. Raises what llguidance raises."""
    from llguidance import LLTokenizer, TokenizerWrapper

    eos = list(eos_token_ids) or None
    vocabulary = LLTokenizer(backend.to_str(), n_vocab=vocab_size, eos_token=eos)
    texts = {i for i, token in backend.get_added_tokens_decoder().items() if not token.special and i < vocab_size}
    if not any(map(vocabulary.is_special_token, texts)):
        return vocabulary
    return LLTokenizer(TokenizerWrapper(_MarksAsTexts(vocabulary, backend, texts)), n_vocab=vocab_size, eos_token=eos)


class _MarksAsTexts:
    """What llguidance's TokenizerWrapper reads. texts: ids of the added tokens that are not special."""

    def __init__(self, vocabulary: "LLTokenizer", backend: Any, texts: set[int]):
        self._backend = backend
        self.bos_token_id, self.eos_token_id = None, vocabulary.eos_token
        self.tokens = [vocabulary.decode_bytes([i]) for i in range(vocabulary.vocab_size)]
        self.special_token_ids = [i for i in range(vocabulary.vocab_size) if vocabulary.is_special_token(i) and i not in texts]

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids
