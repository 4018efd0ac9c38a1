"""A fleet's first steps and requests in the JSON that Perfetto reads ("Trace Event Format", Google). Imports no torch."""

from collections.abc import Iterable
from typing import Any

from nanovllm.fleet.fleet_log import LoggedStep, Routed

ROUTER, FIRST_REPLICA = 1, 10  # process ids, which Perfetto shows as groups of tracks
STEPS = 1                      # the thread of a replica's steps


def fleet_events(num_replicas: int, prefill_replicas: int, steps: Iterable[LoggedStep], requests: Iterable[Routed]
                 ) -> list[dict[str, Any]]:
    """Events in order of time, metadata first, times in microseconds.

    A group of tracks per replica: its steps, its requests as overlapping spans (until the first token, and from there to
    the end), a counter of running and waiting. The router's group has an instant for every decision, with its reason.
    """
    events: list[dict[str, Any]] = [_meta("process", ROUTER, "router")]
    for index in range(num_replicas):
        role = "" if not prefill_replicas else " (prefill)" if index < prefill_replicas else " (decode)"
        events += [_meta("process", FIRST_REPLICA + index, f"replica {index}{role}"),
                   _meta("thread", FIRST_REPLICA + index, "steps", STEPS)]
    for step in steps:
        pid, ts = FIRST_REPLICA + step.replica, _us(step.time)
        events.append({"ph": "X", "pid": pid, "tid": STEPS, "name": _name(step), "ts": ts,
                       "dur": round(_us(step.time + step.duration) - ts, 3),
                       "args": {"prompt tokens": step.prompt_tokens, "decode tokens": step.decode_tokens}})
        events.append({"ph": "C", "pid": pid, "name": "requests", "ts": _us(step.time + step.duration),
                       "args": {"running": step.running, "waiting": step.waiting}})
    for request in requests:
        events.append({"ph": "i", "s": "p", "pid": ROUTER, "tid": STEPS, "name": f"{request.seq_id} → {request.replica}",
                       "ts": _us(request.arrival),
                       "args": {"reason": request.reason, "matched blocks": request.matched_blocks}})
        if request.end is not None and request.first_token is not None:
            decode = request.replica if request.decode_replica is None else request.decode_replica
            for name, replica, began, ended in (("to the first token", request.replica, request.arrival, request.first_token),
                                                ("decode", decode, request.first_token, request.end)):
                span = {"cat": "request", "id": request.seq_id, "pid": FIRST_REPLICA + replica, "tid": STEPS,
                        "name": f"request {request.seq_id}: {name}"}
                events.append(span | {"ph": "b", "ts": _us(began), "args": {
                    "prompt tokens": request.num_prompt_tokens, "of them cached": request.hit_tokens,
                    "output tokens": request.output_tokens}})
                events.append(span | {"ph": "e", "ts": _us(ended)})
    events.sort(key=lambda event: (event["ph"] != "M", event["ts"]))
    return events


def _name(step: LoggedStep) -> str:
    return "decode" if not step.prompt_tokens else "prefill" if not step.decode_tokens else "prefill and decode"


def _meta(kind: str, pid: int, name: str, tid: int | None = None) -> dict[str, Any]:
    where = {"pid": pid} if tid is None else {"pid": pid, "tid": tid}
    return {"ph": "M", "name": f"{kind}_name", "ts": 0, **where, "args": {"name": name}}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
