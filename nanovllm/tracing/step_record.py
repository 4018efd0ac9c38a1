"""One step of the engine as plain data. Imports no torch."""

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence

if TYPE_CHECKING:  # it imports torch
    from nanovllm.engine.llm_engine import LLMEngine

PHASES = ("schedule", "launch", "collect", "update")


@dataclass(slots=True)
class StepRecord:
    """One step of the engine, after it ended. Every field is JSON; sequences appear by their `seq_id`.

    time, duration: seconds, the first since the trace began.
    scheduled: who ran: {"seq_id", "phase": "prefill" | "decode", "start": first position, "num_tokens", "reason"}.
    left_waiting: why the head of the queue, and any sequence passed over, was not admitted.
    running, waiting: the queues after the step. preempted: the sequences that lost their blocks in it, and
        preemption_reasons: why.
    finished: {"seq_id", "reason"}; a sequence that is aborted after a step is added to that step's record.
    tokens: the token drawn for each sequence that drew one. drafts: the guesses that the step checked, and accepted: how many
        of a sequence's drafts came before its token (see `nanovllm.engine.drafts`).
    hit_tokens: prefix-cache hits of those admitted.
    block_tables, context_lens: of the running sequences, after the step; context_lens counts tokens in the cache.
    blocks: one letter for each physical block: f(ree), c(ached), u(sed), s(hared). ref_counts: of shared ones.
    phases: what the host did for this step and when: {"schedule" | "launch" | "collect" | "update": [time, duration]}.
    """

    step: int
    time: float
    duration: float
    token_budget: int
    scheduled: list[dict[str, Any]]
    left_waiting: dict[int, str]
    running: list[int]
    waiting: list[int]
    preempted: list[int]
    finished: list[dict[str, Any]]
    tokens: dict[int, int]
    hit_tokens: dict[int, int]
    block_tables: dict[int, list[int]]
    context_lens: dict[int, int]
    blocks: str
    ref_counts: dict[int, int]
    preemption_reasons: dict[int, str] = field(default_factory=dict)
    phases: dict[str, list[float]] = field(default_factory=dict)
    drafts: dict[int, list[int]] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)

    @property
    def num_prefill_tokens(self) -> int:
        return sum(s["num_tokens"] for s in self.scheduled if s["phase"] == "prefill")

    @property
    def num_decode_tokens(self) -> int:
        return sum(s["num_tokens"] for s in self.scheduled if s["phase"] == "decode")

    @property
    def num_new_tokens(self) -> int:
        """Tokens that the step added to the texts: one of each sequence that drew, and the drafts accepted before it."""
        return len(self.tokens) + sum(self.accepted.values())

    @property
    def num_blocks_in_use(self) -> int:
        return self.blocks.count("u") + self.blocks.count("s")

    def seq_ids(self) -> set[int]:
        """Every sequence that the record speaks of."""
        return {*self.running, *self.waiting, *self.preempted, *(s["seq_id"] for s in self.scheduled),
                *(f["seq_id"] for f in self.finished)}

    @classmethod
    def of(cls, engine: "LLMEngine") -> "StepRecord":
        """The engine's queues, tables and blocks as they are now, as a record of a step in which nothing ran."""
        return cls.of_step(engine.scheduler, engine.num_steps, 0.0, 0.0, ScheduledBatch(), [], [])

    @classmethod
    def of_step(cls, scheduler: Scheduler, step: int, time: float, duration: float, batch: ScheduledBatch,
                token_ids: list[int], finished: list[Sequence], phases: dict[str, list[float]] | None = None) -> "StepRecord":
        """Read a step off the live objects, after `Scheduler.update`. O(cache): only made for a listener."""
        manager = scheduler.block_manager
        drawn = iter(token_ids)
        tokens, drafts, accepted = {}, {}, {}
        for item in batch.items:
            if not item.samples:
                continue
            seq, own = item.seq, list(islice(drawn, 1 + item.num_drafts))
            if item.num_drafts:
                drafts[seq.seq_id] = list(item.draft_token_ids)
                before = item.start + item.num_tokens - item.num_drafts  # tokens it had
                accepted[seq.seq_id] = max(0, len(seq) - before - 1)  # the last one may be a draft that ended the request
                own = own[accepted[seq.seq_id]:]
            if own and own[0] >= 0:
                tokens[seq.seq_id] = own[0]
        return cls(
            step, time, duration, scheduler.max_num_batched_tokens,
            scheduled=[{"seq_id": i.seq.seq_id, "phase": "decode" if i.is_decode else "prefill", "start": i.start,
                        "num_tokens": i.num_tokens, "reason": i.reason} for i in batch.items],
            left_waiting=dict(batch.left_waiting),
            running=[s.seq_id for s in scheduler.running], waiting=[s.seq_id for s in scheduler.waiting],
            preempted=[s.seq_id for s in batch.preempted],
            finished=[{"seq_id": s.seq_id, "reason": s.finish_reason} for s in finished],
            tokens=tokens,
            hit_tokens={s.seq_id: s.num_cached_tokens for s in batch.admitted},
            block_tables={s.seq_id: list(s.block_table) for s in scheduler.running},
            context_lens={s.seq_id: s.num_computed_tokens for s in scheduler.running},
            blocks="".join(manager.block_state(b) for b in range(manager.num_blocks)),
            ref_counts={b: n for b, n in enumerate(manager.ref_counts) if n > 1},
            preemption_reasons=dict(batch.preemption_reasons), phases=phases or {}, drafts=drafts, accepted=accepted)
