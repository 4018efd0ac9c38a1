"""What happened, step by step, as plain data that pictures and tests can read. Imports no torch."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nanovllm.engine.scheduler import ScheduledBatch, Scheduler
from nanovllm.engine.sequence import Sequence

FORMAT_VERSION = 1


@dataclass(slots=True)
class StepRecord:
    """One step of the engine, after it ended. Every field is JSON; sequences appear by their `seq_id`.

    time, duration: seconds, the first since the trace began.
    scheduled: who ran: {"seq_id", "phase": "prefill" | "decode", "start": first position, "num_tokens", "reason"}.
    left_waiting: why the head of the queue (and whoever was passed over) was not admitted.
    running, waiting: the queues after the step. preempted: thrown out in it. finished: {"seq_id", "reason"}.
    tokens: the token drawn for each sequence that drew one. hit_tokens: prefix-cache hits of those admitted.
    block_tables, context_lens: of the running sequences, after the step; context_lens counts tokens in the cache.
    blocks: one letter for each physical block: f(ree), c(ached), u(sed), s(hared). ref_counts: of shared ones.
    """

    step: int
    time: float
    duration: float
    token_budget: int
    scheduled: list[dict]
    left_waiting: dict[int, str]
    running: list[int]
    waiting: list[int]
    preempted: list[int]
    finished: list[dict]
    tokens: dict[int, int]
    hit_tokens: dict[int, int]
    block_tables: dict[int, list[int]]
    context_lens: dict[int, int]
    blocks: str
    ref_counts: dict[int, int]

    @property
    def num_prefill_tokens(self) -> int:
        return sum(s["num_tokens"] for s in self.scheduled if s["phase"] == "prefill")

    @property
    def num_decode_tokens(self) -> int:
        return sum(s["num_tokens"] for s in self.scheduled if s["phase"] == "decode")

    @property
    def num_blocks_in_use(self) -> int:
        return self.blocks.count("u") + self.blocks.count("s")

    @classmethod
    def of(cls, step: int, time: float, duration: float, scheduler: Scheduler, batch: ScheduledBatch,
           token_ids: list[int], finished: list[Sequence]) -> "StepRecord":
        """Read a step off the live objects, after `Scheduler.update`. O(cache): only made when somebody listens."""
        manager = scheduler.block_manager
        sampled = (item.seq.seq_id for item in batch.items if item.samples)
        return cls(
            step, time, duration, scheduler.max_num_batched_tokens,
            scheduled=[{"seq_id": i.seq.seq_id, "phase": "decode" if i.is_decode else "prefill", "start": i.start,
                        "num_tokens": i.num_tokens, "reason": i.reason} for i in batch.items],
            left_waiting=dict(batch.left_waiting),
            running=[s.seq_id for s in scheduler.running], waiting=[s.seq_id for s in scheduler.waiting],
            preempted=[s.seq_id for s in batch.preempted],
            finished=[{"seq_id": s.seq_id, "reason": s.finish_reason} for s in finished],
            tokens=dict(zip(sampled, token_ids)),
            hit_tokens={s.seq_id: s.num_cached_tokens for s in batch.admitted},
            block_tables={s.seq_id: list(s.block_table) for s in scheduler.running},
            context_lens={s.seq_id: s.num_computed_tokens for s in scheduler.running},
            blocks="".join(manager.block_state(b) for b in range(manager.num_blocks)),
            ref_counts={b: n for b, n in enumerate(manager.ref_counts) if n > 1})


@dataclass
class Trace:
    """The steps of a run and what they ran on. An engine appends to `records` while it is attached (`LLM.trace()`).

    meta: block_size, num_blocks, token_budget, max_num_seqs, model; prompts: {seq_id: number of prompt tokens}.
    """

    meta: dict = field(default_factory=dict)
    records: list[StepRecord] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterable[StepRecord]:
        return iter(self.records)

    def __getitem__(self, step: int) -> StepRecord:
        return self.records[step]

    def __repr__(self) -> str:
        tokens = sum(r.num_prefill_tokens + r.num_decode_tokens for r in self.records)
        preemptions = sum(len(r.preempted) for r in self.records)
        return f"Trace({len(self)} steps, {tokens} tokens computed, {preemptions} preemptions)"

    def save(self, path: str | Path) -> None:
        """Write one JSON object: version, meta and the records."""
        data = {"version": FORMAT_VERSION, "meta": self.meta, "records": [asdict(r) for r in self.records]}
        Path(path).write_text(json.dumps(data, separators=(",", ":")))

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read what `save` wrote. Raises ValueError for another version of the format."""
        data = json.loads(Path(path).read_text())
        if data.get("version") != FORMAT_VERSION:
            raise ValueError(f"{path}: trace format version {data.get('version')!r}: must be {FORMAT_VERSION}; "
                             "record the trace again with this version.")
        keyed_by_id = ("left_waiting", "tokens", "hit_tokens", "block_tables", "context_lens", "ref_counts")
        for record in data["records"]:  # JSON turned the integer keys into strings
            record.update({name: {int(k): v for k, v in record[name].items()} for name in keyed_by_id})
        meta = data["meta"]
        meta["prompts"] = {int(k): v for k, v in meta.get("prompts", {}).items()}
        return cls(meta, [StepRecord(**record) for record in data["records"]])

    def to_chrome_trace(self) -> dict:
        """The run as Chrome-trace JSON, which Perfetto opens: a track a sequence, and counters of cache and batch."""
        events = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "sequences"}},
                  {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "engine"}}]
        for r in self.records:
            start, length = r.time * 1e6, max(r.duration * 1e6, 1e-3)  # microseconds
            events += [{"ph": "X", "pid": 1, "tid": s["seq_id"], "ts": start, "dur": length, "name": s["phase"],
                        "args": {"step": r.step, "tokens": s["num_tokens"], "start": s["start"], "reason": s["reason"]}}
                       for s in r.scheduled]
            events += [{"ph": "i", "s": "t", "pid": 1, "tid": i, "ts": start, "name": "preempted"} for i in r.preempted]
            counts = {name: r.blocks.count(name[0]) for name in ("used", "shared", "cached", "free")}
            events += [{"ph": "X", "pid": 2, "tid": 0, "ts": start, "dur": length, "name": f"step {r.step}"},
                       {"ph": "C", "pid": 2, "ts": start, "name": "blocks", "args": counts},
                       {"ph": "C", "pid": 2, "ts": start, "name": "tokens in the step",
                        "args": {"prefill": r.num_prefill_tokens, "decode": r.num_decode_tokens}}]
        return {"traceEvents": events, "displayTimeUnit": "ms"}
