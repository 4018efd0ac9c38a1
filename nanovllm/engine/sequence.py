"""A request as the engine sees it: a growing list of tokens, and how many of them are in the KV cache."""

import time
from array import array
from enum import Enum
from hashlib import blake2b
from math import isfinite

from nanovllm.engine.sequence_drafts import SequenceDrafts
from nanovllm.engine.token_matcher import TokenMatcher
from nanovllm.errors import NotFinite, RequestFailed
from nanovllm.sampling_params import SamplingParams


class SequenceStatus(Enum):
    WAITING = "waiting"      # in the queue, holding no blocks
    RUNNING = "running"      # admitted: holds blocks, scheduled every step
    PREEMPTED = "preempted"  # lost its blocks to another sequence; waits to be recomputed
    FINISHED = "finished"


class Sequence(SequenceDrafts):
    """One request's tokens and its place in the KV cache.

    Owns the token ids, the block table and the counters below. It never allocates a block (BlockManager does) and never
    decides when it runs (Scheduler does); it imports no torch and knows no device.

    seq_id: unique in one engine, in order of arrival. priority: a lower one is served sooner. order_key:
        what the scheduler's queues are sorted by; see `Scheduler.order_key`.
    token_ids: prompt and generated tokens, in one list.
    num_prompt_tokens: where the prompt ends.
    num_computed_tokens: tokens whose keys and values are in the cache, or will be once the steps in flight are done; the
        next step starts at this position.
    num_pending_tokens: 1 while a step in flight draws its next token: it counts, but is not in token_ids yet.
    num_cached_tokens: leading tokens found in the prefix cache at admission. Their slots may be shared, so no step
        writes them: a fully cached prompt recomputes its last token to get logits, without storing it again.
    num_hit_tokens: the same of its first admission, where only other requests can have left them.
    block_table: physical block of each logical block; position p lives in block_table[p // block_size].
    finish_reason: "stop", "length", "abort" or "error" once it has ended; stop_reason: the stop token it met. error: what
        ended it, with "error", or will at its next token.
    logprobs: {position: ([token, the likeliest tokens], their log-probabilities, the token's rank)}, where asked for.
    arrived_at, scheduled_at, token_times: when it was made, first ran and drew each token, by `time.perf_counter`.
    matcher: its place in a grammar, which has taken in the output tokens; None for a sequence without one, and for one that
        has ended.
    seed: what its draws are computed from; the engine picks one for a request that brings none.
    Its drafts, where a smaller model or a look-up guesses ahead, are in `SequenceDrafts`.
    """

    __slots__ = ("seq_id", "priority", "order_key", "token_ids", "num_prompt_tokens", "num_computed_tokens",
                 "num_pending_tokens", "num_cached_tokens", "num_hit_tokens", "block_table", "status", "sampling_params",
                 "seed", "finish_reason", "stop_reason", "error", "num_preemptions", "logprobs", "matcher", "arrived_at",
                 "scheduled_at", "token_times", "_block_hashes")

    def __init__(self, seq_id: int, prompt_token_ids: list[int], sampling_params: SamplingParams | None = None,
                 priority: int = 0):
        super().__init__()
        self.seq_id = seq_id
        self.priority = priority
        self.order_key = 0
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_pending_tokens = 0
        self.num_cached_tokens = 0
        self.num_hit_tokens = 0
        self.block_table: list[int] = []
        self.status = SequenceStatus.WAITING
        self.sampling_params = sampling_params or SamplingParams()
        self.seed = self.sampling_params.seed or 0
        self.matcher: TokenMatcher | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | None = None
        self.error: RequestFailed | None = None
        self.num_preemptions = 0
        self.logprobs: dict[int, tuple[list[int], list[float], int]] = {}
        self.arrived_at = time.perf_counter()
        self.scheduled_at: float | None = None
        self.token_times: list[float] = []
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
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    @property
    def num_new_tokens(self) -> int:
        """Tokens of its next step, if the budget allows them: those uncomputed, and the drafts behind them."""
        return len(self.token_ids) + self.num_pending_tokens + len(self.draft_token_ids) - self.num_computed_tokens

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
        """Add a sampled token. Its keys and values enter the cache in the step after the one that drew it."""
        self.token_ids.append(token_id)
        self.num_pending_tokens = 0
        if self.matcher is not None:
            self._follow(self.matcher, token_id)

    def note_logprobs(self, entries: dict[int, tuple[list[int], list[float], int]]) -> None:
        """Take in log-probabilities, as in `logprobs`. Those that are no numbers end it."""
        self.logprobs.update(entries)
        for position, (_, values, _) in entries.items():
            if not all(map(isfinite, values)):
                self.note_not_finite(position)

    def note_not_finite(self, position: int) -> None:
        """The scores for the token at a position were such that none can be drawn."""
        where = f"output token {position - self.num_prompt_tokens}" if position >= self.num_prompt_tokens else (
            f"prompt token {position}")
        what_forbids = [name for name in ("allowed_token_ids", "bad_words_ids", "structured_outputs")
                        if getattr(self.sampling_params, name)]
        forbidden = "every token is forbidden" if not self.sampling_params.forbids_words else (
            f"{' and '.join(what_forbids).replace('bad_words_ids', 'bad_words')} leave no token, in which case forbid less")
        self.error = NotFinite(
            f"the model's scores for {where} are not finite: they hold a NaN or an infinity, or {forbidden}. "
            "Check the weights; where float16 overflows, use dtype='bfloat16' or 'float32'.")

    def _follow(self, matcher: TokenMatcher, token_id: int) -> None:
        """Tell the grammar of a token. One that it does not allow ends the sequence: a sampler of one's own need not mask."""
        try:
            if not matcher.advance(token_id):
                self.error = self.error or RequestFailed(
                    f"structured_outputs: the sampler drew token {token_id}, which the grammar does not allow at output token "
                    f"{self.num_output_tokens - 1}; apply batch.processors in a sampler of your own.")
        except RequestFailed as error:
            self.error = self.error or error

    def block_hashes(self, block_size: int) -> list[bytes]:
        """The chained hash of every full block: each covers its own tokens and, through its parent, all before it.

        Equal hashes mean equal prefixes, which is what makes a cached block safe to share (vLLM's automatic prefix
        caching). 128-bit BLAKE2 rather than Python's `hash`: two different prompts must never meet. Computed once per block.
        """
        hashes = self._block_hashes
        for i in range(len(hashes), len(self.token_ids) // block_size):
            parent = hashes[-1] if hashes else b""
            tokens = array("q", self.token_ids[i * block_size:(i + 1) * block_size])
            hashes.append(blake2b(parent + tokens.tobytes(), digest_size=16).digest())
        return hashes
