"""A batch on one machine: every request of a file answered by the server's own routes, without a socket and without Ray."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from pathlib import Path

from starlette.types import ASGIApp
from tqdm.auto import tqdm

from nanovllm.async_llm import AsyncLLM
from nanovllm.fleet import asgi
from nanovllm.fleet.batch_file import BatchRow, answer_line, check_rows, failed_line, read_rows, resume
from nanovllm.server.app import create_app

JSON_HEADERS = ((b"content-type", b"application/json"), (b"host", b"127.0.0.1"))


async def answer(app: ASGIApp, row: BatchRow) -> str:
    """The output line of one request; what goes wrong with it stands in the line."""
    try:
        status, body = await asgi.request(app, "POST", row.url, headers=JSON_HEADERS, body=json.dumps(row.body).encode())
    except Exception as error:
        return failed_line(row.custom_id, f"{type(error).__name__}: {error}")
    return answer_line(row.custom_id, status, body)


async def answers(app: ASGIApp, rows: Iterable[BatchRow], concurrency: int, keep_order: bool = False) -> AsyncIterator[str]:
    """The output lines of all requests, `concurrency` of which run at a time; as they end, or in the order of `rows`.

    Of what has ended out of turn at most three times `concurrency` lines are kept in memory: beyond that, new requests wait
    for the oldest.
    """
    places = asyncio.Semaphore(concurrency)
    ended: asyncio.Queue[asyncio.Task[str]] = asyncio.Queue()
    pending: OrderedDict[asyncio.Task[str], None] = OrderedDict()

    async def one(row: BatchRow) -> str:
        async with places:
            return await answer(app, row)

    try:
        source = iter(rows)
        while True:
            for row in islice(source, max(0, (4 if keep_order else 1) * concurrency - len(pending))):
                task = asyncio.create_task(one(row))
                task.add_done_callback(ended.put_nowait)
                pending[task] = None
            if not pending:
                return
            task = next(iter(pending)) if keep_order else await ended.get()
            line = await task
            del pending[task]
            yield line
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def to_do(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Check an input file and make the output file ready: (requests in all, answered by an earlier run).

    Raises ValueError for a file that is not of the format.
    """
    total = check_rows(source)
    return total, len(resume(target, {row.custom_id for row in read_rows(source)}))


def remaining(source: str | Path, target: str | Path) -> list[BatchRow]:
    """The requests of `source` that `target` has no answer to, in order."""
    done = set()
    if Path(target).exists():
        with open(target, encoding="utf-8") as file:
            done = {json.loads(line)["custom_id"] for line in file}
    return [row for row in read_rows(source) if row.custom_id not in done]


def run_batch(source: str | Path, target: str | Path, llm: AsyncLLM, *, keep_order: bool = False,
              concurrency: int | None = None, progress: bool = True) -> None:
    """Answer every request of `source` into `target`. Requests that `target` already answers are not run again.

    concurrency: requests under way at once; None is the engine's max_num_seqs. `llm` is closed at the end.
    Raises ValueError for a file that is not of the format.
    """
    total, done = to_do(source, target)

    async def run() -> None:
        app = create_app(llm)
        try:
            lines = answers(app, remaining(source, target), concurrency or llm.llm.config.max_num_seqs, keep_order)
            with (open(target, "a", encoding="utf-8") as file,
                  tqdm(total=total, initial=done, desc="Batch", unit=" requests", disable=not progress) as bar):
                async for line in lines:
                    file.write(line + "\n")
                    file.flush()  # a run that is killed has lost nothing that it answered
                    bar.update()
        finally:
            await llm.close()

    asyncio.run(run())
