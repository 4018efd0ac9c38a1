"""One request of a load test: sent to an OpenAI server, read as a stream, and timed from the moment it was planned for."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass(slots=True)
class Request:
    """arrival: the planned time, in seconds since the run began. body: JSON, ready to be sent."""

    arrival: float
    body: bytes


@dataclass(slots=True)
class Outcome:
    """What came of a request. Times in seconds since the run began; counts as the server's `usage` states them.

    arrival: when it was planned. sent: when it left; the difference is the load generator's own delay, and part of every
    latency. token_times: of the chunks that held text, the first of which is the first token. error: why it failed, or None.
    """

    arrival: float
    sent: float = math.nan
    end: float = math.nan
    token_times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        """From the planned arrival to the first token."""
        return self.token_times[0] - self.arrival if self.token_times else math.nan

    @property
    def latency(self) -> float:
        """From the planned arrival to the last token ("end to end")."""
        return self.token_times[-1] - self.arrival if self.token_times else math.nan

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; nan for an answer of one token."""
        return (self.token_times[-1] - self.token_times[0]) / (self.output_tokens - 1) if self.output_tokens > 1 else math.nan

    @property
    def gaps(self) -> list[float]:
        """From each chunk of text to the next: inter-token latencies, where the server sends every token as it is made."""
        return [later - earlier for earlier, later in zip(self.token_times, self.token_times[1:])]


class Failed(Exception):
    """The server did not answer as it should; the text is short, so that equal failures can be counted."""


class LoadClient:
    """Streams completions or chats from one server. Every request has a connection of its own, as users have.

    url: the server's address with /v1. endpoint: "completions" or "chat/completions". timeout: seconds that a request may
    take in all; a server that hangs costs no more. Use it as an async context manager.
    """

    def __init__(self, url: str, endpoint: str, *, api_key: str | None = None, timeout: float = 600):
        self._url, self._timeout = f"{url.rstrip('/')}/{endpoint}", timeout
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})

    async def __aenter__(self) -> "LoadClient":
        # A connection that is kept could be closed by the server at the moment in which it is used again: no fault of its.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), headers=self._headers,
                                              timeout=aiohttp.ClientTimeout(total=None), trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, request: Request, outcome: Outcome, began: float) -> None:
        """Send `request` now and fill `outcome`; whatever goes wrong stands in `outcome.error`. began: the run's beginning
        on the clock of `time.perf_counter`."""
        outcome.sent = time.perf_counter() - began
        try:
            async with asyncio.timeout(self._timeout):
                await self._stream(request, outcome, began)
        except TimeoutError:
            outcome.error = f"no end after {self._timeout:g} s"
        except Failed as failed:
            outcome.error = str(failed)
        except aiohttp.ClientConnectorError:
            outcome.error = "connection refused"
        except (aiohttp.ClientError, ConnectionError) as lost:
            outcome.error = f"connection lost ({type(lost).__name__})"
        outcome.end = time.perf_counter() - began

    async def _stream(self, request: Request, outcome: Outcome, began: float) -> None:
        async with self._session.post(self._url, data=request.body) as response:
            if response.status != 200:
                raise Failed(f"HTTP {response.status}: {_message(await response.read())}")
            ended = False
            async for now, data in _events(response.content):
                if data == b"[DONE]":
                    ended = True
                    continue
                _take_in(data, outcome, now - began)
        if not ended:
            raise Failed("the stream ended before [DONE]")
        if not outcome.token_times:
            raise Failed("an answer without text")
        outcome.output_tokens = outcome.output_tokens or len(outcome.token_times)


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[tuple[float, bytes]]:
    """(when it was read, data) of every server-sent event."""
    rest = b""
    async for piece in content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield now, line[5:].strip()


def _take_in(data: bytes, outcome: Outcome, now: float) -> None:
    """Count what one event says. Raises Failed for an error event and for one that is no JSON object."""
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise Failed("an event that is no JSON object")
    if event.get("error"):
        raise Failed(f"error event: {_message(data)}")
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        # The first chunk of a chat may hold a role only, and the last one a finish reason only: no tokens.
        if choice.get("text") or any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")):
            outcome.token_times.append(now)
    if usage := event.get("usage"):
        outcome.prompt_tokens, outcome.output_tokens = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _message(body: bytes, longest: int = 120) -> str:
    """What an error's body says, cut."""
    try:
        answer: Any = json.loads(body)
        answer = answer.get("error", answer)
        text = str(answer.get("message", answer) if isinstance(answer, dict) else answer)
    except (ValueError, AttributeError):
        text = body.decode(errors="replace")
    return text if len(text) <= longest else text[:longest] + "…"
