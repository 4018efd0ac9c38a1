"""What reaches a simulated fleet, and when: Poisson traffic, bursts, conversations, or a trace file. Imports no torch."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from nanovllm.errors import InvalidArgument
from nanovllm.utils.checks import check

FIRST_PRIVATE = 1 << 40  # ids below are for prompts that are shared
TRACE_BLOCK = 512        # tokens that one of a trace file's `hash_ids` stands for
SPREAD = 0.7             # of the lengths' logarithms


@dataclass(frozen=True, slots=True)
class Turn:
    """A later message of a conversation: seconds after the answer before it, its tokens, and how long its answer is."""

    think_seconds: float
    token_ids: range
    max_tokens: int


@dataclass(slots=True)
class Arrival:
    """A request on its way to the fleet. `turns` follow one by one, each after the answer to the one before.

    time: seconds since the run began. turn: its number in the conversation. A turn's prompt is the whole conversation so
    far, answers included.
    """

    time: float
    prompt_token_ids: list[int]
    max_tokens: int
    conversation: int
    turns: tuple[Turn, ...] = ()
    turn: int = 0

    def next_turn(self, now: float, answer: list[int]) -> "Arrival | None":
        """What the conversation asks after `answer`; None when it is over."""
        if not self.turns:
            return None
        turn = self.turns[0]
        return Arrival(now + turn.think_seconds, [*self.prompt_token_ids, *answer, *turn.token_ids], turn.max_tokens,
                       self.conversation, self.turns[1:], self.turn + 1)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Chats that begin at random. Iterating yields their first requests in order of time, the same for the same seed.

    rate: conversations that begin per second, on average. num_conversations: how many begin.
    system_prompts, system_tokens: each chat begins with one of so many system prompts of this length.
    prompt_tokens, output_tokens: means of the message's and the answer's length; they are lognormal, as lengths in chat
        logs are, and cut at eight times the mean. turns: messages per conversation. think_seconds: mean time, exponential,
        from an answer to the next message.
    burst: the rate in bursts over the rate outside them; 1 is a Poisson process. In each period of `burst_period` seconds
        the first `burst_share` is a burst. The mean rate stays `rate`.

    Token ids are numbers that no model knows: what a token says plays no part in scheduling, only which prompts begin alike.
    """

    rate: float
    num_conversations: int
    system_prompts: int = 4
    system_tokens: int = 512
    prompt_tokens: int = 256
    output_tokens: int = 128
    turns: int = 1
    think_seconds: float = 5.0
    burst: float = 1.0
    burst_share: float = 0.2
    burst_period: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "num_conversations", "system_prompts", "prompt_tokens", "output_tokens", "turns", "burst",
                     "burst_period"):
            check(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0", "raise it")
        check(0 < self.burst_share < 1, "burst_share", self.burst_share, "between 0 and 1", "use burst=1 for no bursts")
        check(self.system_tokens >= 0, "system_tokens", self.system_tokens, "0 or more", "use 0 for no system prompt")

    def __iter__(self) -> Iterator[Arrival]:
        draw = Random(self.seed)
        now, next_id = 0.0, FIRST_PRIVATE
        for conversation in range(self.num_conversations):
            now = self._next_time(draw, now)
            system = draw.randrange(self.system_prompts) * self.system_tokens
            turns = []
            for _ in range(self.turns):
                length = self._length(draw, self.prompt_tokens)
                turns.append(Turn(draw.expovariate(1 / self.think_seconds) if self.think_seconds else 0.0,
                                  range(next_id, next_id + length), self._length(draw, self.output_tokens)))
                next_id += length
            yield Arrival(now, [*range(system, system + self.system_tokens), *turns[0].token_ids], turns[0].max_tokens,
                          conversation, tuple(turns[1:]))

    @staticmethod
    def _length(draw: Random, mean: int) -> int:
        return max(1, min(round(draw.lognormvariate(math.log(mean) - SPREAD**2 / 2, SPREAD)), 8 * mean))

    def _next_time(self, draw: Random, now: float) -> float:
        """Of a Poisson process whose rate changes: unit-rate waiting time, spent at the rate of each phase in turn."""
        low = self.rate / (1 + self.burst_share * (self.burst - 1))
        left = draw.expovariate(1)
        while True:
            phase = now % self.burst_period
            in_burst = phase < self.burst_share * self.burst_period
            rate = low * self.burst if in_burst else low
            end = now - phase + (self.burst_share * self.burst_period if in_burst else self.burst_period)
            if now + left / rate <= end or self.burst == 1:
                return now + left / rate
            left -= (end - now) * rate
            now = end + 1e-9  # into the next phase, whatever the rounding


@dataclass(frozen=True)
class TraceFile:
    """Requests read from a file, line by line, in the format of Mooncake's published traces (Qin et al. 2024).

    Each line is JSON: {"timestamp": milliseconds, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}. Equal
    hash ids mean equal blocks of 512 prompt tokens; without `hash_ids` nothing is shared. Lines must be in order of time.
    speed: 2 replays it twice as fast. limit: read only so many requests.

    Raises InvalidArgument for a line that is not of this form, naming it.
    """

    path: str | Path
    speed: float = 1.0
    limit: int | None = field(default=None)

    def __iter__(self) -> Iterator[Arrival]:
        check(self.speed > 0, "speed", self.speed, "above 0", "use 1 for the trace's own pace")
        next_id, last = FIRST_PRIVATE, 0.0
        with open(self.path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == self.limit:
                    return
                try:
                    entry = json.loads(line)
                    time, length = entry["timestamp"] / 1e3 / self.speed, int(entry["input_length"])
                    shared = [token for block in entry.get("hash_ids", ())
                              for token in range(block * TRACE_BLOCK, (block + 1) * TRACE_BLOCK)][:length]
                    max_tokens = max(1, int(entry["output_length"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise InvalidArgument(f"{self.path}, line {number + 1}: {type(error).__name__}: {error}; each line must be "
                                          "an object with timestamp, input_length and output_length.") from error
                check(time >= last, f"timestamp in line {number + 1}", entry["timestamp"],
                      "no earlier than the line before", "sort the file by timestamp")
                own = length - len(shared)
                yield Arrival(time, [*shared, *range(next_id, next_id + own)], max_tokens, number)
                next_id, last = next_id + own, time
