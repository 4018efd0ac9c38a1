"""Every error a client can meet, in the OpenAI API's envelope."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nanovllm.errors import CheckpointError, EngineError, InvalidArgument, QueueFull, RequestFailed


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

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


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
    elif not isinstance(error, (LookupError, ValueError, EngineError)):
        message = f"{type(error).__name__}: {error}"
    return error_response(status, message, param, code, headers)


def _field_at_fault(message: str, default: str) -> str:
    """The field that a message of `check` begins with; what names none is about the prompt's tokens."""
    named = re.match(r"([a-z_]+)(\[\d+\])?=", message)
    return named[1] if named and named[1] != "message" else default


def malformed_body(_: Request, error: Exception) -> JSONResponse:
    """What the body's validation says, in the words of the first thing that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(400, f"The body is not valid JSON: {first['ctx']['error']}.")
    where = [part for part in first["loc"] if part != "body"]
    param = ".".join(map(str, where)) or None
    message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return error_response(400, f"{param or 'body'}: {message}.", param)


def http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), headers=error.headers)


def install(app: FastAPI) -> None:
    """Have `app` answer its exceptions in the envelope."""
    app.add_exception_handler(RequestValidationError, malformed_body)
    app.add_exception_handler(HTTPException, http_error)
    for kind in ANSWERS:
        app.add_exception_handler(kind, response_to)
