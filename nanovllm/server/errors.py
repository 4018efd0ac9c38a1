"""Every error a client can meet, in the OpenAI API's envelope."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nanovllm.errors import CheckpointError, EngineError, InvalidArgument, QueueFull, RequestFailed
from nanovllm.server.schemas import ErrorBody

LONGEST_MESSAGE = 600  # characters; what a client sent comes back in it, and may have been megabytes
LONGEST_PARAM = 100


class UnknownModel(LookupError):
    """The client asked for a model that is not served here."""


class Answer(NamedTuple):
    """How an error is answered. param: the field at fault, where the class alone says it."""

    status: int
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] | None = None


ANSWERS: dict[type[Exception], Answer] = {
    UnknownModel: Answer(404, "model", "model_not_found"),
    InvalidArgument: Answer(400),
    ValueError: Answer(400),
    QueueFull: Answer(429, None, "queue_full", {"Retry-After": "1"}),
    RequestFailed: Answer(500),  # 503 once the engine is closed
    EngineError: Answer(500),
    CheckpointError: Answer(500),
    Exception: Answer(500),
}
"""The nearest class decides."""

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_MEANINGS = {400: "The request cannot be served; `param` names the field", 401: "The API key is wrong or missing",
             403: "The Host header names another machine", 404: "There is no such model or endpoint",
             408: "The body did not arrive in time", 413: "The body is too large", 415: "The body is not declared as JSON",
             429: "Too many requests wait; ask again later", 500: "A step of the engine failed, or there is a bug",
             503: "The engine is closed"}
REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody, "description": meaning}
                                             for status, meaning in _MEANINGS.items()}
"""What the OpenAPI document says of every endpoint that takes a body."""
REFUSALS_OF_GET: dict[int | str, dict[str, Any]] = {status: REFUSALS[status] for status in (401, 403, 500)}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> ErrorBody:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = None if param is None else _shortened(param, LONGEST_PARAM)
    return {"error": {"message": _shortened(message, LONGEST_MESSAGE), "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, param: str | None = None, code: str | None = None,
                   headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, message, param, code), status, headers)


def response_to(request: Request, error: Exception) -> JSONResponse:
    """What the table says of an exception."""
    status, param, code, headers = next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
    message = str(error)
    if status == 400:
        param = _field_at_fault(message, "messages" if "chat" in request.url.path else "prompt")
    elif status == 500 and not request.app.state.server.llm.is_open:
        status = 503
    elif ANSWERS[Exception].status == status and not isinstance(error, (ValueError, EngineError)):
        message = f"{type(error).__name__}: {error}"
    return error_response(status, message, param, code, headers)


def malformed_body(request: Request, error: Exception) -> JSONResponse:
    """What the body's validation says, in the words of the first thing that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(400, f"The body is not valid JSON: {first['ctx']['error']}.")
    if isinstance(error.body, bytes):  # nobody has tried to read it
        declared = request.headers.get("content-type")
        return error_response(415, f"Content-Type={declared!r}: must be 'application/json'; send that header with the body.")
    where = [part for part in first["loc"] if part != "body"]
    param = ".".join(map(str, where)) or None
    message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return error_response(400, f"{_shortened(param or 'body', LONGEST_PARAM)}: {message}.", param)


def http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), headers=error.headers)


def install(app: FastAPI) -> None:
    """Have `app` answer its exceptions in the envelope; what is in the table as Exception is `RequestIds`' affair."""
    app.add_exception_handler(RequestValidationError, malformed_body)
    app.add_exception_handler(HTTPException, http_error)
    for kind in ANSWERS:
        if kind is not Exception:
            app.add_exception_handler(kind, response_to)


def _field_at_fault(message: str, default: str) -> str:
    """The field that a message of `check` begins with; what names none is about the prompt's tokens.

    A field of a field is named with all its path, as the body's validation does: tools.0.function.parameters.
    """
    if path := re.match(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)+)(?: [a-zA-Z]+)?=", message):
        return re.sub(r"\[(\d+)\]", r".\1", path[1])
    named = re.match(r"([a-z_]+)(\[\d+\])?=", message)
    return named[1] if named and named[1] != "message" else default


def _shortened(text: str, longest: int) -> str:
    """The text as JSON can carry it, its middle left out when it is long: limit and remedy stand at the end."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= longest else f"{text[:longest // 2]} … {text[len(text) - longest // 2:]}"
