"""From settings to a server that runs, and to one that ends without losing a word it could still say."""

import asyncio
import gc
import ipaddress
import math
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from nanovllm.async_llm import AsyncLLM
from nanovllm.server import KEY_VARIABLE
from nanovllm.server.app import create_app
from nanovllm.server.connections import TimedProtocol
from nanovllm.server.state import ServerState
from nanovllm.utils.checks import check

LONGEST_WAIT = 24 * 3600.0


def run(model: str | None, engine_settings: dict[str, Any], *, host: str, port: int, api_key: str | None, max_queue: int,
        max_body_bytes: int, receive_seconds: float, shutdown_seconds: float, log_level: str, generation_config: str = "auto",
        served_model_name: str | None = None, allow_origin: Sequence[str] = (), allow_host: Sequence[str] = (),
        public_metrics: bool = False, reasoning_parser: str = "auto",
        max_stored_responses: int = 1024) -> None:
    """Load the model and serve it until SIGINT or SIGTERM. Raises ValueError for what cannot be served."""
    check_settings(host=host, port=port, api_key=api_key, max_body_bytes=max_body_bytes, receive_seconds=receive_seconds,
                   shutdown_seconds=shutdown_seconds, served_model_name=served_model_name,
                   max_stored_responses=max_stored_responses)
    try:
        # Bound before the model is loaded: a port that is taken should not cost a minute to find out about.
        with bind(host, port) as listener:
            llm = AsyncLLM(model, max_queued=max_queue, **engine_settings)
            app = create_app(llm, served_model_name=served_model_name, api_key=api_key, max_body_bytes=max_body_bytes,
                             receive_seconds=receive_seconds, generation_config=generation_config,
                             allowed_hosts=hosts_to_allow(listener.getsockname()[0], host, allow_host),
                             allowed_origins=allow_origin, public_metrics=public_metrics,
                             reasoning_parser=reasoning_parser, max_stored_responses=max_stored_responses)
            say_what_is_served(app.state.server, engine_settings)
            if api_key is None and not is_loopback(listener.getsockname()[0]):
                print(f"Everybody who reaches {host} may use this server; set {KEY_VARIABLE} to ask for a key.", flush=True)
            # What is there by now stays: Python's collector need not look through all of torch whenever a body holds a
            # million lists, for which it took 3 s and then takes 0.7.
            gc.collect()
            gc.freeze()
            Server(app, shutdown_seconds, log_level, receive_seconds).run(sockets=[listener])
    except KeyboardInterrupt:  # while the model was loaded; or uvicorn, which raises it again once everything is shut down
        pass


def check_settings(*, host: str, port: int, api_key: str | None, max_body_bytes: int, receive_seconds: float,
                   shutdown_seconds: float, served_model_name: str | None, max_stored_responses: int) -> None:
    """Raise ValueError for a setting of the server that cannot be meant."""
    check(host.strip() != "", "host", host, "an address or a name", "use 0.0.0.0 for every address of this machine")
    check(0 <= port < 2**16, "port", port, "from 0 to 65535", "0 is any free one")
    check(api_key is None or api_key != "", "api_key", api_key, "at least one character",
          f"unset {KEY_VARIABLE} to serve everybody")
    check(api_key is None or not any(c.isspace() or not c.isprintable() for c in api_key), "api_key", "…",
          "of printable characters without spaces, as no header can carry the rest",
          "look for a line break at the end of the file that it came from")
    check(served_model_name is None or served_model_name.strip() != "", "served_model_name", served_model_name,
          "at least one character", "leave it out for the name of the model's folder")
    check(max_stored_responses >= 0, "max_stored_responses", max_stored_responses, "0 or more", "0 keeps none")
    check(max_body_bytes >= 1, "max_body_bytes", max_body_bytes, "1 or more", "leave it out")
    check(math.isfinite(shutdown_seconds) and 0 <= shutdown_seconds <= LONGEST_WAIT, "shutdown_seconds", shutdown_seconds,
          f"from 0 to {LONGEST_WAIT:g}", "0 ends running requests at once")
    check(math.isfinite(receive_seconds) and 0 < receive_seconds <= LONGEST_WAIT, "receive_seconds", receive_seconds,
          f"above 0 and at most {LONGEST_WAIT:g}", "leave it out")


def hosts_to_allow(address: str, host: str, allow_host: Sequence[str]) -> tuple[str, ...] | None:
    """What a Host header may hold; None is everything.

    A server that listens on this machine only is reached by this machine's names, so any other is a web page's trick. One
    that listens on the network may have names that it does not know: it checks when it is told them.
    """
    if allow_host:
        return ("localhost", host, *allow_host)
    return ("localhost", host) if is_loopback(address) else None


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def say_what_is_served(state: ServerState, engine_settings: dict[str, Any]) -> None:
    """What differs from what was asked for, or is not obvious, goes to the terminal."""
    print(f"{state.llm!r}", flush=True)
    asked, given = engine_settings.get("max_model_len"), state.engine.config.max_model_len
    if asked is not None and asked > given:
        print(f"max_model_len is {given} and not {asked}: the model's config.json allows no more.", flush=True)
    if stated := str(state.defaults):
        print(f"Requests that do not say otherwise are drawn as the model's generation_config.json recommends: {stated}; "
              "--generation-config vllm turns that off.", flush=True)


class Server(uvicorn.Server):
    """uvicorn, except that requests which still run when the grace is over are ended by us, so that each gets an answer.

    app: what `create_app` made. shutdown_seconds: the grace, from SIGINT or SIGTERM on; a second signal ends it.
    receive_seconds: see `TimedProtocol`.
    """

    def __init__(self, app: FastAPI, shutdown_seconds: float, log_level: str, receive_seconds: float = 60):
        protocol = type("TimedProtocol", (TimedProtocol,), {"receive_seconds": receive_seconds})
        # What uvicorn itself cancels leaves a traceback; its later deadline is for a client that reads nothing any more.
        super().__init__(uvicorn.Config(app, log_level=log_level, timeout_graceful_shutdown=int(shutdown_seconds) + 5,
                                        http=protocol))
        self._llm, self._shutdown_seconds = app.state.server.llm, shutdown_seconds
        self._hurries = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and not self._hurries:  # uvicorn would leave at once, with a traceback for every connection
            self._hurries = True
        else:
            super().handle_exit(sig, frame)

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
        deadline = time.monotonic() + self._shutdown_seconds
        while time.monotonic() < deadline and not self._hurries:
            await asyncio.sleep(0.05)
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
    except (OSError, OverflowError, UnicodeError) as error:
        raise ValueError(f"host={host!r}, port={port}: cannot listen there ({error}); choose another.") from error
    return listener
