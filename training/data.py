"""Documents to token arrays: seeded shards, made on as many processes as there are cores."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.chats import document
from training.dice import Dice

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# As in Qwen3: tokens of their own that stay in the text when special tokens are left out of it.
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
# How Qwen2 and Qwen3 cut text before merging: contractions, words, single digits, punctuation, line ends, spaces.
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
              r"\s+(?!\S)|\s+")


def documents(seed: int, count: int, copying: float) -> list[str]:
    rng = Dice(seed)
    return [document(rng, copying) for _ in range(count)]


def train_tokenizer(seed: int, vocab_size: int, num_documents: int) -> Tokenizer:
    """Byte-level BPE on our own text: any UTF-8 survives a round trip, and every row of the vocabulary is used."""
    tokenizer = Tokenizer(models.BPE())
    # No normalizer: what goes in must come out, also where Unicode has two spellings of one letter.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL + MARKS), show_progress=False, min_frequency=2,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = documents(seed, num_documents, 0.1)
    for token in SPECIAL + MARKS:
        texts = [text.replace(token, "\n") for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])  # the last rows
    return tokenizer


def shard(seed: int, tokenizer_file: str, count: int, copying: float) -> np.ndarray:
    """Token ids [num_tokens] uint16 of `count` documents, each followed by <|endoftext|>."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    end = tokenizer.token_to_id("<|endoftext|>")
    ids: list[int] = []
    for encoding in tokenizer.encode_batch_fast(documents(seed, count, copying)):
        ids += encoding.ids
        ids.append(end)
    return np.array(ids, np.uint16)


def make_tokens(tokenizer_file: Path, num_documents: int, seed: int, copying: float, workers: int) -> np.ndarray:
    """The concatenated shards. The same arguments give the same array on any number of workers."""
    size = 2000
    seeds = range(seed, seed + max(1, num_documents // size))
    make = partial(shard, tokenizer_file=str(tokenizer_file), count=min(size, num_documents), copying=copying)
    if workers == 1:
        return np.concatenate([make(s) for s in seeds])
    with ProcessPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(make, seeds)))
