"""What stands before the routes: the key, and the largest body."""

import hmac

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.server.errors import error_response

OPEN_PATHS = ("/health",)  # what asks whether a server lives rarely holds its key


class Guard:
    """ASGI middleware: refuses a request without the key (401) or with too large a body (413) before anything reads it.

    api_key: None lets everybody in. max_body_bytes: bytes of the body, whether its length is announced or not.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int):
        self.app = app
        self.max_body_bytes = max_body_bytes
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if self._expected is not None and scope["path"] not in OPEN_PATHS:
            # compare_digest takes as long for a wrong first byte as for a wrong last one.
            if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
                response = error_response(401, "Wrong or missing API key; send it as 'Authorization: Bearer KEY'.",
                                          code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                return await response(scope, receive, send)
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.max_body_bytes:
            return await error_response(413, self._too_large(announced.decode()))(scope, receive, send)
        await self.app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that gives up on a body whose length was not announced when it grows too large."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                raise HTTPException(413, self._too_large(f"more than {self.max_body_bytes}"))
            return message

        return counted

    def _too_large(self, size: str) -> str:
        return f"The body has {size} bytes, and may have {self.max_body_bytes}; send less or raise --max-body-bytes."
