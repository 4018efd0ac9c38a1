"""A name for every request, which answer, headers and log share; and the last place where an exception is caught."""

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.server.errors import response_to

HEADER = "X-Request-Id"
logger = logging.getLogger("nanovllm.server")


class RequestIds:
    """ASGI middleware: every answer says its request's id in X-Request-Id, the client's own or one made here.

    An exception that nobody else answers is a bug: it is logged with its traceback under that id, and answered with 500.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = Headers(scope=scope).get(HEADER, "")
        is_the_clients = bool(re.fullmatch("[!-~]{1,128}", asked))
        request_id = asked if is_the_clients else uuid.uuid4().hex
        scope["request_id"], scope["request_id_is_the_clients"] = request_id, is_the_clients
        has_started = False

        async def named(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, named)
        except Exception as error:
            if has_started:
                raise  # the answer cannot be finished: uvicorn logs the error and closes the connection
            logger.exception("Request %s to %s failed", request_id, scope["path"])
            await response_to(Request(scope), error)(scope, receive, named)


def request_id_of(request: Request, in_body: str | None = None) -> str:
    """The request's id: the one of the header, else that of the body, else the one made here."""
    made: str = request.scope["request_id"]
    return in_body if in_body is not None and not request.scope["request_id_is_the_clients"] else made
