"""What this package asks of a tokenizer."""

from pathlib import Path
from typing import Any, Protocol

from nanovllm.errors import InvalidRequest


class Tokenizer(Protocol):
    """The methods of transformers' tokenizers that are used here."""

    def encode(self, text: str, /, *, add_special_tokens: bool = True, verbose: bool = True) -> list[int]: ...

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False,
               clean_up_tokenization_spaces: bool | None = None) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], /, *, tokenize: bool, add_generation_prompt: bool,
                            **template_arguments: Any) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def convert_ids_to_tokens(self, token_ids: list[int], /) -> list[str]: ...


def require_tokenizer(tokenizer: Tokenizer | None, model: str | Path, purpose: str) -> Tokenizer:
    """The tokenizer. Raises InvalidRequest when the model's folder had none."""
    if tokenizer is None:
        raise InvalidRequest(f"model={str(model)!r}: must be a folder with a tokenizer.json for {purpose}; "
                             "add the tokenizer's files, or pass lists of token ids.")
    return tokenizer
