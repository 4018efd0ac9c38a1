"""From settings to a server that runs, and to one that ends without losing a word it could still say."""

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from nanovllm.async_llm import AsyncLLM
from nanovllm.server import KEY_VARIABLE
from nanovllm.server.app import create_app
from nanovllm.utils.checks import check

LOOPBACK = ("127.0.0.1", "::1")


def run(model: str | None, engine_settings: dict[str, Any], *, host: str, port: int, api_key: str | None, max_queue: int,
        max_body_bytes: int, shutdown_seconds: float, log_level: str, served_model_name: str | None = None) -> None:
    """Load the model and serve it until SIGINT or SIGTERM. Raises ValueError for what cannot be served."""
    check(api_key != "", "api_key", api_key, "at least one character", f"unset {KEY_VARIABLE} to serve everybody")
    check(max_body_bytes >= 1, "max_body_bytes", max_body_bytes, "1 or more", "leave it out")
    check(shutdown_seconds >= 0, "shutdown_seconds", shutdown_seconds, "0 or more", "0 ends running requests at once")
    # Bound before the model is loaded: a port that is taken should not cost a minute to find out about.
    with bind(host, port) as listener:
        llm = AsyncLLM(model, max_queued=max_queue, **engine_settings)
        app = create_app(llm, served_model_name=served_model_name, api_key=api_key, max_body_bytes=max_body_bytes)
        print(f"{llm!r}", flush=True)
        if api_key is None and listener.getsockname()[0] not in LOOPBACK:
            print(f"Everybody who reaches {host} may use this server; set {KEY_VARIABLE} to ask for a key.", flush=True)
        try:
            Server(app, shutdown_seconds, log_level).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises it again once everything is shut down
            pass


class Server(uvicorn.Server):
    """uvicorn, except that requests which still run when the grace is over are ended by us, so that each gets an answer.

    app: what `create_app` made. shutdown_seconds: the grace, from SIGINT or SIGTERM on.
    """

    def __init__(self, app: FastAPI, shutdown_seconds: float, log_level: str):
        # What uvicorn itself cancels leaves a traceback; its later deadline is for a client that reads nothing any more.
        super().__init__(uvicorn.Config(app, log_level=log_level, timeout_graceful_shutdown=int(shutdown_seconds) + 5))
        self._llm, self._shutdown_seconds = app.state.server.llm, shutdown_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            print(f"Listening on http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_requests())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_requests(self) -> None:
        await asyncio.sleep(self._shutdown_seconds)
        await self._llm.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, not listening yet. Raises ValueError when it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise ValueError(f"host={host!r}, port={port}: cannot listen there ({error}); choose another.") from error
    return listener
