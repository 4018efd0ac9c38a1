"""A request as the engine sees it: a growing list of tokens and a note of how far the cache has followed."""

from array import array
from enum import Enum
from hashlib import blake2b

from nanovllm.sampling_params import SamplingParams


class SequenceStatus(Enum):
    WAITING = "waiting"      # in the queue, holding no blocks
    RUNNING = "running"      # admitted: holds blocks, scheduled every step
    PREEMPTED = "preempted"  # thrown out for want of blocks; waits to be recomputed
    FINISHED = "finished"


class Sequence:
    """One request's tokens and its place in the KV cache.

    Owns the token ids, the block table and the counters below. It never allocates a block (BlockManager does) and never
    decides when it runs (Scheduler does); it imports no torch and knows no device.

    seq_id: unique in one engine, in order of arrival.
    token_ids: prompt and generated tokens, in one list.
    num_prompt_tokens: where the prompt ends.
    num_computed_tokens: tokens whose keys and values are in the cache; the next step starts at this position.
    num_cached_tokens: leading tokens found in the prefix cache at admission. Their slots may be shared, so no step
        writes them: a fully cached prompt recomputes its last token to get logits, without storing it again.
    block_table: physical block of each logical block; position p lives in block_table[p // block_size].
    """

    __slots__ = ("seq_id", "token_ids", "num_prompt_tokens", "num_computed_tokens", "num_cached_tokens", "block_table",
                 "status", "sampling_params", "finish_reason", "num_preemptions", "_block_hashes")

    def __init__(self, seq_id: int, prompt_token_ids: list[int], sampling_params: SamplingParams | None = None):
        self.seq_id = seq_id
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.block_table: list[int] = []
        self.status = SequenceStatus.WAITING
        self.sampling_params = sampling_params or SamplingParams()
        self.finish_reason: str | None = None
        self.num_preemptions = 0
        self._block_hashes: list[bytes] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        end = f", finish_reason={self.finish_reason!r}" if self.finish_reason else ""
        return (f"Sequence({self.seq_id}, {self.status.value}, prompt={self.num_prompt_tokens}, "
                f"output={self.num_output_tokens}, computed={self.num_computed_tokens}, blocks={self.block_table}{end})")

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens the model still has to see: 1 while decoding, more while a prompt is being prefilled."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens:]

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    def append_token(self, token_id: int) -> None:
        """Add a sampled token. Its keys and values enter the cache in the step after this one."""
        self.token_ids.append(token_id)

    def block_hashes(self, block_size: int) -> list[bytes]:
        """The chained hash of every full block: each covers its own tokens and, through its parent, all before it.

        Equal hashes mean equal prefixes, which is what makes a cached block safe to share (vLLM's automatic prefix
        caching). 128-bit BLAKE2 rather than Python's `hash`: two different prompts must never meet. Computed once a block.
        """
        hashes = self._block_hashes
        for i in range(len(hashes), len(self.token_ids) // block_size):
            parent = hashes[-1] if hashes else b""
            tokens = array("q", self.token_ids[i * block_size:(i + 1) * block_size])
            hashes.append(blake2b(parent + tokens.tobytes(), digest_size=16).digest())
        return hashes
