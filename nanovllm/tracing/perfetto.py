"""A trace in the JSON format that Perfetto and Chrome read ("Trace Event Format", Google). Imports no torch.

Spans on one track may nest but must not cross. Steps of a pipelined engine overlap, so a span here begins, at the
earliest, where the one before it on its track ended.
"""

from collections.abc import Iterable
from typing import Any

from nanovllm.tracing.step_record import StepRecord

SEQUENCES, ENGINE, PROFILER = 1, 2, 3  # process ids, which Perfetto shows as groups of tracks
STEPS, PHASES = 1, 2                   # thread ids of the engine's tracks
FIRST_SEQUENCE = 1000                  # the thread of sequence 0: ids must be unique in the file, and 0 is the idle thread
FIRST_PROFILED = 10


def perfetto_events(records: Iterable[StepRecord], arrivals: dict[int, float], operations: list[dict[str, Any]]
                    ) -> list[dict[str, Any]]:
    """Events in order of time, metadata first: spans ("X"), instants ("i") and counters ("C"), times in microseconds.

    records, operations: of a `Trace`. arrivals: of its meta, seconds by seq_id.
    """
    tracks = _Tracks()
    tracks.name(SEQUENCES, "sequences")
    tracks.name(ENGINE, "engine")
    tracks.name(ENGINE, "steps", STEPS)
    tracks.name(ENGINE, "host phases", PHASES)
    waiting_since = {i: (max(0.0, arrival), "waiting") for i, arrival in arrivals.items()}
    reasons: dict[int, str] = {}
    for r in records:
        tokens = {"prefill": r.num_prefill_tokens, "decode": r.num_decode_tokens}
        tracks.span(ENGINE, STEPS, f"step {r.step}", r.time, r.duration, tokens)
        for name, (time, duration) in r.phases.items():
            tracks.span(ENGINE, PHASES, name, time, duration, {"step": r.step})
        for seq_id in r.preempted:
            reason = r.preemption_reasons.get(seq_id, "")
            tracks.instant(seq_id, "preempted", r.time, {"step": r.step, "reason": reason})
            waiting_since[seq_id], reasons[seq_id] = (r.time, "preempted, waiting"), reason
        reasons |= r.left_waiting
        for s in r.scheduled:
            seq_id = s["seq_id"]
            if seq_id in r.hit_tokens and seq_id in waiting_since:  # admitted in this step
                since, name = waiting_since.pop(seq_id)
                tracks.span(*tracks.sequence(seq_id), name, since, r.time - since, {"reason": reasons.pop(seq_id, "")})
            tracks.span(*tracks.sequence(seq_id), s["phase"], r.time, r.duration,
                        {"step": r.step, "start": s["start"], "tokens": s["num_tokens"], "reason": s["reason"]}
                        | ({"drafts": len(r.drafts[seq_id]), "accepted": r.accepted[seq_id]} if seq_id in r.drafts else {}))
        for end in r.finished:
            tracks.instant(end["seq_id"], f"finished: {end['reason']}", r.time + r.duration, {"step": r.step})
        tracks.counter("cache blocks", r.time, {name: r.blocks.count(name[0]) for name in ("used", "shared", "cached", "free")})
        tracks.counter("tokens in the step", r.time, tokens)
        if r.drafts:
            kept = sum(r.accepted.values())
            tracks.counter("drafts", r.time, {"accepted": kept, "refused": sum(map(len, r.drafts.values())) - kept})
        tracks.counter("sequences", r.time, {"running": len(r.running), "waiting": len(r.waiting)})
    for track in dict.fromkeys(o["track"] for o in operations):
        tracks.profiled(track)
    for o in sorted(operations, key=lambda o: o["time"]):
        tracks.span(*tracks.profiled(o["track"]), o["name"], o["time"], o["duration"], {})
    tracks.events.sort(key=lambda e: (e["ph"] != "M", e.get("ts", 0)))
    return tracks.events


class _Tracks:
    """Collects events, gives tracks their ids, and keeps spans of one track from crossing."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._ends: dict[tuple[int, int], float] = {}
        self._profiled: dict[str, int] = {}

    def name(self, pid: int, name: str, tid: int | None = None) -> None:
        kind, where = ("process", {"pid": pid}) if tid is None else ("thread", {"pid": pid, "tid": tid})
        for suffix, args in (("name", {"name": name}), ("sort_index", {"sort_index": pid if tid is None else tid})):
            self.events.append({"ph": "M", "name": f"{kind}_{suffix}", "ts": 0, **where, "args": args})

    def sequence(self, seq_id: int) -> tuple[int, int]:
        tid = FIRST_SEQUENCE + seq_id
        if (SEQUENCES, tid) not in self._ends:
            self.name(SEQUENCES, f"sequence {seq_id}", tid)
            self._ends[SEQUENCES, tid] = 0.0
        return SEQUENCES, tid

    def profiled(self, track: str) -> tuple[int, int]:
        if track not in self._profiled:
            if not self._profiled:
                self.name(PROFILER, "profiler")
            self._profiled[track] = FIRST_PROFILED + len(self._profiled)
            self.name(PROFILER, track, self._profiled[track])
        return PROFILER, self._profiled[track]

    def span(self, pid: int, tid: int, name: str, time: float, duration: float, args: dict[str, Any]) -> None:
        end = time + duration
        start = max(time, self._ends.get((pid, tid), 0.0))
        if end <= start:  # nothing of it is left to show, or the clock saw nothing pass
            end = start
        self._ends[pid, tid] = end
        ts = round(start * 1e6, 3)
        self.events.append({"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": ts,
                            "dur": round(round(end * 1e6, 3) - ts, 3), "args": args})

    def instant(self, seq_id: int, name: str, time: float, args: dict[str, Any]) -> None:
        pid, tid = self.sequence(seq_id)
        self.events.append({"ph": "i", "s": "t", "pid": pid, "tid": tid, "name": name, "ts": round(time * 1e6, 3),
                            "args": args})

    def counter(self, name: str, time: float, values: dict[str, int]) -> None:
        self.events.append({"ph": "C", "pid": ENGINE, "name": name, "ts": round(time * 1e6, 3), "args": values})
