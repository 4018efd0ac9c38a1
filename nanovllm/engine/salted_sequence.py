"""A request that shares cached blocks only with requests of the same salt. Imports no torch."""

from hashlib import blake2b
from typing import Any

from nanovllm.engine.sequence import Sequence


class SaltedSequence(Sequence):
    """A sequence whose `sampling_params.cache_salt` is part of the hash of each of its blocks.

    Whoever sends a prompt can tell by the time to the first token whether somebody sent the same beginning before. A salt
    that only one group of users knows keeps the others from finding out (vLLM's `cache_salt`).
    """

    __slots__ = ("_salted_hashes",)

    def __init__(self, *args: Any, **keywords: Any):
        super().__init__(*args, **keywords)
        self._salted_hashes: list[bytes] = []

    def block_hashes(self, block_size: int) -> list[bytes]:
        """As `Sequence.block_hashes`: each of those, hashed once more with the salt."""
        salt = (self.sampling_params.cache_salt or "").encode("utf-8", "surrogatepass")
        for unsalted in super().block_hashes(block_size)[len(self._salted_hashes):]:
            self._salted_hashes.append(blake2b(unsalted + salt, digest_size=16).digest())
        return self._salted_hashes
