"""What happened, step by step, as plain data that pictures and tests can read. Imports no torch."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from nanovllm.engine.sequence import Sequence
from nanovllm.errors import InvalidArgument
from nanovllm.tracing.perfetto import perfetto_events
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace_file import PER_REQUEST, PagedRecords, TraceWriter, read_head
from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted

__all__ = ["StepRecord", "Trace"]


@dataclass
class Trace:
    """The steps of a run and what they ran on. A `Recorder` appends them while an engine runs (`LLM.trace()`).

    meta: block_size, num_blocks, token_budget, max_num_seqs, model; by seq_id, prompts: number of prompt tokens, and
        arrivals: seconds since the trace began (below 0 for those that came before it).
    records: the steps; of a loaded trace they are read from the file page by page, as they are asked for.
    operations: what a profiler saw, {"track", "name", "time", "duration"} in seconds since the trace began.
    max_records: keep only so many of the newest in memory; None keeps all.
    path: a file that takes every record while the run goes on, whatever is kept in memory. `close` completes it.
    began: what `time.perf_counter` said at the trace's time 0.

    It never reads the engine: what is recorded is handed to it.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    records: list[StepRecord] | PagedRecords = field(default_factory=list)
    operations: list[dict[str, Any]] = field(default_factory=list)
    max_records: int | None = field(default=None, compare=False)
    path: str | Path | None = field(default=None, compare=False)
    began: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        check(self.max_records is None or self.max_records >= 1, "max_records", self.max_records, "1 or more, or None",
              "keep at least one record")
        self.meta.setdefault("prompts", {})
        self.meta.setdefault("arrivals", {})
        self._writer = TraceWriter(self.path) if self.path else None
        self._prune_above = 1024

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self.records)

    @overload
    def __getitem__(self, step: int) -> StepRecord: ...

    @overload
    def __getitem__(self, step: slice) -> "Trace": ...

    def __getitem__(self, step: int | slice) -> "StepRecord | Trace":
        """One record, or for a slice a trace of these records and the requests in them: `trace[-100:]` is what figures of
        a long run take."""
        if not isinstance(step, slice):
            return self.records[step]
        records = self.records[step]
        seen: set[int] = set().union(*(record.seq_ids() for record in records))
        known = {name: {i: value for i, value in self.meta[name].items() if i in seen} for name in PER_REQUEST}
        return Trace(self.meta | known, records, self.operations)

    def __repr__(self) -> str:
        if isinstance(self.records, PagedRecords):  # counting would read a day's worth of pages
            return f"Trace({len(self)} steps, read page by page)"
        tokens = sum(r.num_prefill_tokens + r.num_decode_tokens for r in self.records)
        preemptions = sum(len(r.preempted) for r in self.records)
        return (f"Trace({counted(len(self), 'step')}, {counted(tokens, 'token')} computed, "
                f"{counted(preemptions, 'preemption')})")

    def joined(self, seq: Sequence) -> None:
        """Record that a request was queued."""
        self.meta["prompts"][seq.seq_id] = seq.num_prompt_tokens
        self.meta["arrivals"][seq.seq_id] = seq.arrived_at - self.began

    def append(self, record: StepRecord) -> None:
        """Take in a step; with `max_records` the oldest goes, and with it what is known of requests that ended long ago."""
        records = self._in_memory()
        records.append(record)
        if self._writer:
            self._writer.add(record, self.meta)
        if self.max_records and len(records) > self.max_records:
            del records[:-self.max_records]
            if len(self.meta["prompts"]) > self._prune_above:
                self._prune()

    def ended(self, seq: Sequence) -> None:
        """Record, with the last step, that a request was ended between two steps."""
        if self.records:
            self.records[-1].finished.append({"seq_id": seq.seq_id, "reason": seq.finish_reason})

    def close(self) -> None:
        """Write what is still in memory to `path`; may be called any number of times."""
        if self._writer:
            self._writer.close(self.meta, self.operations)
            self._writer = None

    def save(self, path: str | Path) -> None:
        """Write the whole trace: compressed pages of records, each readable without the others."""
        writer = TraceWriter(path)
        for record in self:
            writer.add(record, self.meta)
        writer.close(self.meta, self.operations)

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Open what `save` or a recording to a file wrote, finished or not. Reads records when they are asked for.

        Raises InvalidArgument for a file that is no trace, or one of another version of the format.
        """
        meta, operations = read_head(path)
        return cls(meta, PagedRecords(path), operations)

    def to_perfetto(self, path: str | Path | None = None) -> dict[str, Any]:
        """The run as a JSON object that https://ui.perfetto.dev opens; with `path` also written there (.gz compresses).

        Tracks: one per sequence (waiting, prefill, decode, preempted, each with its reason), the steps, the host's phases,
        counters of the cache, the batch and the queues, and what a profiler saw beside them.
        """
        data = {"traceEvents": perfetto_events(self, self.meta["arrivals"], self.operations), "displayTimeUnit": "ms"}
        if path is not None:
            text = json.dumps(data, separators=(",", ":")).encode()
            Path(path).write_bytes(gzip.compress(text) if Path(path).suffix == ".gz" else text)
        return data

    def _in_memory(self) -> list[StepRecord]:
        """The records as a list that can grow. Raises InvalidArgument for those of a loaded trace, which stay on disk."""
        if isinstance(self.records, PagedRecords):
            raise InvalidArgument(f"trace={self!r}: must be one that is being recorded; this one was loaded from a file.")
        return self.records

    def _prune(self) -> None:
        """Forget requests that no record speaks of; those newer than all records have yet to run."""
        seen: set[int] = set().union(*(record.seq_ids() for record in self.records))
        newest = max(seen, default=-1)
        for name in PER_REQUEST:
            self.meta[name] = {i: value for i, value in self.meta[name].items() if i in seen or i > newest}
        self._prune_above = max(1024, 2 * len(self.meta["prompts"]))
