"""How much of an answer is copied: n-grams of words that a sample of the training text has too. Needs no torch."""

import os
import re
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from training.chats import document
from training.dice import Dice

PART = 500  # documents a job


def _grams(words: list[str], n: int) -> list[int]:
    return [zlib.crc32(" ".join(words[i:i + n]).encode()) for i in range(len(words) - n + 1)]


def _grams_of_documents(n: int, seed: int, count: int) -> set[int]:
    rng = Dice(seed)
    return {gram for _ in range(count) for gram in _grams(re.findall(r"\w+", document(rng).lower()), n)}


def copied(words: list[list[str]], n: int, documents: int) -> float:
    """Share of the n-grams of `words` (one list a text) that stand in so many training documents too.

    Several processes make the documents; they are started afresh, since one that holds a GPU must not be forked.
    """
    jobs = [(n, part, min(PART, documents - PART * part)) for part in range(-(-documents // PART))]
    if len(jobs) == 1:
        seen = _grams_of_documents(*jobs[0])
    else:
        with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), get_context("spawn")) as pool:
            seen = set().union(*pool.map(_grams_of_documents, *zip(*jobs)))
    grams = [gram for text in words for gram in _grams(text, n)]
    return round(sum(gram in seen for gram in grams) / max(1, len(grams)), 4)
