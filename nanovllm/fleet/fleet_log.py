"""What a simulated fleet writes down of its first requests and steps, one by one. Imports no torch."""

from dataclasses import dataclass


@dataclass(slots=True)
class Routed:
    """One request's way: what the router saw and chose, and what came of it. Times in seconds since the run began."""

    seq_id: int
    conversation: int
    turn: int
    arrival: float
    num_prompt_tokens: int
    replica: int
    matched_blocks: int
    reason: str
    loads: list[int] | None = None  # unfinished requests of each replica when it was chosen; only of requests that are logged
    decode_replica: int | None = None
    hit_tokens: int = 0
    first_token: float | None = None
    end: float | None = None
    output_tokens: int = 0


@dataclass(slots=True)
class LoggedStep:
    """One step of one replica. Times in seconds since the run began."""

    replica: int
    time: float
    duration: float
    prompt_tokens: int
    decode_tokens: int
    running: int
    waiting: int
