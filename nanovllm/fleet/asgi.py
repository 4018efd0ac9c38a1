"""An ASGI application called in this process, without a socket: how a replica and a batch use the server's own routes."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from starlette.types import ASGIApp, Message

Headers = Iterable[tuple[bytes, bytes]]
GRACE_S = 10.0  # for an application to notice that nobody listens any more


async def messages(app: ASGIApp, method: str, path: str, *, query: bytes = b"", headers: Headers = (), body: bytes = b""
                   ) -> AsyncIterator[Message]:
    """Send one HTTP request to `app`; yield what it sends, "http.response.start" first.

    Closing the iterator early, or cancelling whoever awaits it, tells the application that the client has disconnected,
    and waits until it has taken notice. Raises what the application raises before it has begun to answer.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    disconnected = asyncio.Event()
    unread = [body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await disconnected.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
             "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query, "root_path": "",
             "headers": list(headers), "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 80)}
    task = asyncio.ensure_future(app(scope, receive, sent.put))
    task.add_done_callback(lambda _: sent.put_nowait(None))
    started = False
    try:
        while (message := await sent.get()) is not None:
            started = True
            yield message
        if not started:  # an exception after the answer has begun is the application's to log
            task.result()
            raise RuntimeError(f"the application ended without an answer to {method} {path}")
    finally:
        disconnected.set()
        await asyncio.wait([task], timeout=GRACE_S)
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # seen


async def request(app: ASGIApp, method: str, path: str, *, headers: Headers = (), body: bytes = b"") -> tuple[int, bytes]:
    """The status and the whole body of one answer. Cancelling it disconnects, see `messages`."""
    status, parts = 0, []
    async for message in messages(app, method, path, headers=headers, body=body):
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))
    return status, b"".join(parts)
