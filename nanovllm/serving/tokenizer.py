"""What this package asks of a tokenizer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from nanovllm.errors import CheckpointError, InvalidRequest
from nanovllm.serving.fast_tokenizer import FastTokenizer
from nanovllm.serving.gguf_tokenizer import load_gguf_tokenizer
from nanovllm.utils.checkpoint import read_json
from nanovllm.utils.gguf_file import is_gguf

# Any one of these makes a tokenizer: of the Rust library, of GPT-2's kind, SentencePiece's, tiktoken's, Mistral's.
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model", "tiktoken.model", "tekken.json")
JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")


class Tokenizer(Protocol):
    """The methods of transformers' tokenizers that are used here."""

    def encode(self, text: str, /, *, add_special_tokens: bool = True, verbose: bool = True) -> list[int]: ...

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False,
               clean_up_tokenization_spaces: bool | None = None) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], /, *, tokenize: bool, add_generation_prompt: bool,
                            **template_arguments: Any) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def convert_ids_to_tokens(self, token_ids: list[int], /) -> list[str]: ...


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, or of a GGUF file; None when it has none: prompts are then token ids.

    Raises CheckpointError, naming the file where one is broken. Code that a folder brings along is never run.
    """
    if is_gguf(folder):
        return _read(folder, load_gguf_tokenizer)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    fast = _read(folder, FastTokenizer.read)
    if fast is not None:
        return fast
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    from transformers import AutoTokenizer
    return _read(folder, partial(AutoTokenizer.from_pretrained, local_files_only=True, trust_remote_code=False))


def _read(path: Path, read: Callable[[Path], Any]) -> Tokenizer | None:
    """What `read` makes of the path. Raises CheckpointError, whatever it raises."""
    try:
        return cast(Tokenizer | None, read(path))
    except CheckpointError:
        raise
    except BaseException as error:  # of many kinds, some of other libraries
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # which pyo3 hides from `Exception`
            raise
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({type(error).__name__}: {error}); copy or download the "
                              "tokenizer's files again.") from error


def require_tokenizer(tokenizer: Tokenizer | None, model: str | Path, purpose: str) -> Tokenizer:
    """The tokenizer. Raises InvalidRequest when the model's folder had none."""
    if tokenizer is None:
        raise InvalidRequest(f"model={str(model)!r}: must be a folder with a tokenizer.json for {purpose}; "
                             "add the tokenizer's files, or pass lists of token ids.")
    return tokenizer
