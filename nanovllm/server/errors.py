"""Every error a client can meet, in the OpenAI API's envelope."""

import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nanovllm.async_llm import QueueFull, RequestFailed

STATUS_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class UnknownModel(LookupError):
    """The client asked for a model that is not served here."""


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict:
    kind = STATUS_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, param: str | None = None, code: str | None = None, headers=None) -> JSONResponse:
    return JSONResponse(error_body(status, message, param, code), status, headers)


def install(app: FastAPI) -> None:
    """Have `app` answer its exceptions in the envelope."""

    @app.exception_handler(RequestValidationError)
    def malformed_body(_, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(400, f"The body is not valid JSON: {first['ctx']['error']}.")
        where = [part for part in first["loc"] if part != "body"]
        param = ".".join(map(str, where)) or None
        message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        return error_response(400, f"{param or 'body'}: {message}.", param)

    @app.exception_handler(ValueError)
    def refused(request: Request, error: ValueError) -> JSONResponse:
        named = re.match(r"([a-z_]+)(\[\d+\])?=", str(error))  # as `check` writes it
        default = "messages" if "chat" in request.url.path else "prompt"  # what is left is about the prompt's tokens
        return error_response(400, str(error), named[1] if named and named[1] != "message" else default)

    @app.exception_handler(UnknownModel)
    def unknown_model(_, error: UnknownModel) -> JSONResponse:
        return error_response(404, str(error), "model", "model_not_found")

    @app.exception_handler(QueueFull)
    def queue_full(_, error: QueueFull) -> JSONResponse:
        return error_response(429, str(error), code="queue_full", headers={"Retry-After": "1"})

    @app.exception_handler(RequestFailed)
    def failed(request: Request, error: RequestFailed) -> JSONResponse:
        return error_response(500 if request.app.state.llm.is_open else 503, str(error))

    @app.exception_handler(HTTPException)
    def http(_, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    def bug(_, error: Exception) -> JSONResponse:
        return error_response(500, f"{type(error).__name__}: {error}")
