"""What stands before the routes: the key, the host that a browser believes it talks to, and the body's size and speed."""

import asyncio
import hmac
import ipaddress
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.server.errors import error_response

OPEN_PATHS = frozenset({"/health", "/ping"})  # what asks whether a server lives rarely holds its key


class Guard:
    """ASGI middleware: refuses a request before anything reads it.

    api_key: who does not send it gets 401; None lets everybody in. open_paths: where no key is needed.
    allowed_hosts: the names that a Host header may hold, else 403; None allows every one. A web page can make its own name
        point to this machine ("DNS rebinding") and would then count as this server's own page; the browser still sends that
        name. "*.example.com" allows all names that end so, "*" all there are.
    max_body_bytes: bytes of the body, whether its length is announced or not; more is 413.
    receive_seconds: how long the whole body may take; longer is 408.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None = None, open_paths: frozenset[str] = OPEN_PATHS,
                 allowed_hosts: tuple[str, ...] | None = None, max_body_bytes: int, receive_seconds: float = 60):
        self.app = app
        self.open_paths, self.allowed_hosts = open_paths, allowed_hosts
        self.max_body_bytes, self.receive_seconds = max_body_bytes, receive_seconds
        self._expected = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host = headers.get("host")
        if host is not None and self.allowed_hosts is not None and not is_allowed(host, self.allowed_hosts):
            response = error_response(403, f"Host={host!r}: must be one of {', '.join(self.allowed_hosts)}; start the server "
                                      "with --allow-host to be reached by another name.", code="host_not_allowed")
            return await response(scope, receive, send)
        if self._expected is not None and scope["path"] not in self.open_paths and not self._has_key(scope):
            response = error_response(401, "Wrong or missing API key; send it as 'Authorization: Bearer KEY'.",
                                      code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            return await response(scope, receive, send)
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self.max_body_bytes:
            return await error_response(413, self._too_large(announced))(scope, receive, send)
        await self.app(scope, self._limited(receive), send)

    def _has_key(self, scope: Scope) -> bool:
        header: bytes = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = header.partition(b" ")
        # compare_digest takes as long for a wrong first byte as for a wrong last one.
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._expected or b"")

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that gives up on a body that grows too large or comes too slowly."""
        deadline = time.monotonic() + self.receive_seconds
        read, is_whole = 0, False

        async def limited() -> Message:
            nonlocal read, is_whole
            if is_whole:  # what comes next is the disconnect, which may take as long as it likes
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"The body did not arrive within {self.receive_seconds:g} seconds; send it faster "
                                    "or raise --receive-seconds.", {"Connection": "close"}) from None
            read += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if read > self.max_body_bytes:
                raise HTTPException(413, self._too_large(f"more than {self.max_body_bytes}"))
            return message

        return limited

    def _too_large(self, size: str) -> str:
        return f"The body has {size} bytes, and may have {self.max_body_bytes}; send less or raise --max-body-bytes."


def is_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a Host header holds one of the names, whatever its port."""
    name = _host_name(host)
    return any(pattern == "*" or name == pattern.lower() or (pattern.startswith("*.") and name.endswith(pattern[1:].lower()))
               or (pattern == "localhost" and _is_loopback(name)) for pattern in allowed)


def _host_name(host: str) -> str:
    """Without port, brackets and the dot that ends a full name."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


def _is_loopback(name: str) -> bool:
    """Names that lead nowhere but to this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.endswith(".localhost")
