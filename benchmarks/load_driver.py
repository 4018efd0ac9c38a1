"""When the requests of a load test leave: at their planned times whatever the server does, or one after the other."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from benchmarks.load_client import Outcome, Request

Send = Callable[[Request, Outcome, float], Awaitable[None]]


class Progress(Protocol):
    """Told when a request leaves and when it has ended."""

    def began(self) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...


async def open_loop(requests: Sequence[Request], send: Send, progress: Progress,
                    clock: Callable[[], float] = time.perf_counter) -> list[Outcome]:
    """Send every request at its planned time, however many are under way: users do not wait for each other.

    A load generator that waits for answers before it sends the next request measures a slow server as a fast one
    ("coordinated omission", Tene 2015). Returns the outcomes of all that were sent, in order of arrival; when it is
    cancelled, of those that had ended by then.
    """
    began = clock()
    tasks: list[asyncio.Task[Outcome]] = []
    try:
        for request in requests:
            await asyncio.sleep(request.arrival - (clock() - began))  # no time left: only lets the others run
            tasks.append(asyncio.create_task(_one(request, request.arrival, send, began, progress)))
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        await _cancel(tasks)
    return [task.result() for task in tasks if not task.cancelled()]


async def closed_loop(requests: Sequence[Request], send: Send, progress: Progress, concurrency: int,
                      clock: Callable[[], float] = time.perf_counter) -> list[Outcome]:
    """Keep `concurrency` requests under way: as soon as one has ended, the next one of `requests` leaves, and that is its
    arrival. Returns as `open_loop`."""
    began = clock()
    left = iter(requests)
    outcomes: list[Outcome] = []

    async def user() -> None:
        for request in left:  # shared: each takes the next one
            outcomes.append(await _one(request, clock() - began, send, began, progress))

    users = [asyncio.create_task(user()) for _ in range(min(concurrency, len(requests)))]
    try:
        await asyncio.gather(*users)
    except asyncio.CancelledError:
        await _cancel(users)
    return sorted(outcomes, key=lambda outcome: outcome.arrival)


async def _one(request: Request, arrival: float, send: Send, began: float, progress: Progress) -> Outcome:
    outcome = Outcome(arrival)
    progress.began()
    try:
        await send(request, outcome, began)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # a defect here, and still one request's: the others go on
        outcome.error = f"{type(error).__name__}: {error}"
    progress.ended(outcome)
    return outcome


async def _cancel(tasks: Sequence[asyncio.Task[Outcome] | asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
