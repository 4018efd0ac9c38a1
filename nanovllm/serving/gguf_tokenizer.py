"""The tokenizer and the chat template that a GGUF file carries."""

from pathlib import Path
from typing import Any

from nanovllm.errors import CheckpointError
from nanovllm.utils.gguf_file import gguf_values

CONTROL, USER_DEFINED = 3, 4  # token types, as llama.cpp numbers them
# How a text is cut before its pieces are merged, by llama.cpp's name (`tokenizer.ggml.pre`): a regular expression, or None for
# the one that byte-level BPE brings along (GPT-2's).
DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}  # each digit by itself, and then as GPT-2
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
PATTERNS = {"default": None, "gpt-2": None, "gpt2": None, "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2, "llama-bpe": LLAMA3,
            "llama3": LLAMA3, "llama-v3": LLAMA3, "smaug-bpe": LLAMA3}


def load_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file, as a transformers tokenizer with the file's chat template; None when it has none.

    Byte-level BPE (`gpt2`) is put together here; SentencePiece's kind (`llama`) is left to transformers. Raises
    CheckpointError, naming the key, for one that is missing or that nobody here understands, and for a token that stands in
    the vocabulary twice: one of its ids would be lost, and all special tokens behind it moved.
    """
    said = gguf_values(path, "tokenizer.ggml.")
    kind = said.get("model")
    if kind is None:
        return None
    _check_unique(path, said.get("tokens"))
    if kind == "llama":
        from transformers import AutoTokenizer
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    if kind != "gpt2":
        raise CheckpointError(f"{path}: tokenizer.ggml.model={kind!r}: must be 'gpt2' or 'llama'; use another file.")
    for key in ("tokens", "merges"):
        if not isinstance(said.get(key), list):
            raise CheckpointError(f"{path}: key tokenizer.ggml.{key} is missing, or no list; copy or download the file again.")
    from transformers import PreTrainedTokenizerFast
    tokens = said["tokens"]
    named = {name: tokens[said[key]] for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"),
             ("unk_token", "unknown_token_id"), ("pad_token", "padding_token_id"))
             if 0 <= said.get(key, len(tokens)) < len(tokens)}
    template = gguf_values(path, "tokenizer.chat_template").get("")
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level_bpe(path, said), chat_template=template,
                                   clean_up_tokenization_spaces=False, **named)


def _check_unique(path: Path, tokens: Any) -> None:
    first: dict[Any, int] = {}
    for i, token in enumerate(tokens if isinstance(tokens, list) else ()):
        if first.setdefault(token, i) != i:
            raise CheckpointError(f"{path}: tokenizer.ggml.tokens has {token!r} at {first[token]} and at {i}: a token must "
                                  "stand there once (llama.cpp asks for that, too); convert the model again, or use the "
                                  "original checkpoint.")


def _byte_level_bpe(path: Path, said: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pre, tokens = said.get("pre", "default"), said["tokens"]
    if pre not in PATTERNS and pre not in DIGITS:
        raise CheckpointError(f"{path}: tokenizer.ggml.pre={pre!r}: must be one of {', '.join(sorted((*PATTERNS, *DIGITS)))}; "
                              "use another file, or the original checkpoint.")
    merges = [tuple(merge.split(" ", 1)) for merge in said["merges"]]
    pattern = PATTERNS.get(pre)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=pattern == LLAMA3))
    level = pre_tokenizers.ByteLevel(add_prefix_space=bool(said.get("add_space_prefix", False)), use_regex=pattern is None)
    if pattern is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    elif pre in DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    else:
        tokenizer.pre_tokenizer = level
    if pattern == QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    kinds = said.get("token_type") or [1] * len(tokens)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token, kind in zip(tokens, kinds) if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)
                          for token, kind in zip(tokens, kinds) if kind == USER_DEFINED])
    processor: Any = processors.ByteLevel(trim_offsets=False)
    if said.get("add_bos_token", False) and "bos_token_id" in said:
        bos = tokens[said["bos_token_id"]]
        processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                                  special_tokens=[(bos, said["bos_token_id"])])
    tokenizer.post_processor = processor
    return tokenizer
