"""The ingress of a fleet on Ray Serve: an ASGI application that passes each request on to the replica that the router picks."""

import asyncio
import json
import logging
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from nanovllm.engine.sequence import Sequence
from nanovllm.server.errors import error_body, error_response

ATTEMPTS = 3  # replicas that a request is offered to, while nothing of its answer is out
log = logging.getLogger("ray.serve")


class Ingress:
    """Passes requests on over a handle, and what the replica's application sends back to the client.

    Reads the prompt's beginning for the router: the block hashes of its tokens, as the engine makes them. A client that
    disconnects ends its request in the replica. When a replica dies before it has answered, another one is asked; when it
    dies in the middle of a stream, the client gets an error event.

    engines: handle of the deployment with the engines. tokenizer: the model's, or None where prompts are token ids.
    block_size: tokens per hash; the router compares its own hashes only, so it need not be the engines'.
    """

    def __init__(self, engines: DeploymentHandle[Any], tokenizer: Any, block_size: int):
        self._engines: Any = engines.options(stream=True, method_name="answer")  # its type says nothing of streams
        self._tokenizer, self._block_size = tokenizer, block_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"a fleet serves HTTP, not {scope['type']}")
        try:
            body = await _read(receive)
        except HTTPException as refused:  # by the guard: too large
            return await error_response(refused.status_code, str(refused.detail))(scope, receive, send)
        hashes = await asyncio.to_thread(self.prompt_hashes, body) if body else []
        passing = asyncio.ensure_future(self._pass_on(scope, body, hashes, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((passing, gone), return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            for task in (passing, gone):
                task.cancel()
            await asyncio.gather(passing, gone, return_exceptions=True)

    def prompt_hashes(self, body: bytes) -> list[bytes]:
        """The chained hashes of a request's prompt, without a last block that is not full. Empty for a body that holds no
        prompt, or one that the replica will refuse."""
        try:
            request = json.loads(body)
            if "messages" in request:
                extras = request.get("chat_template_kwargs") or {}
                prompt = self._tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True,
                                                             tools=request.get("tools"), **extras)
            else:
                prompt = request["prompt"]
                if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
                    prompt = prompt[0]
            tokens = self._tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
            return Sequence(0, tokens).block_hashes(self._block_size)
        except Exception:  # whatever is wrong with it, the replica says it better
            return []

    async def _pass_on(self, scope: Scope, body: bytes, hashes: list[bytes], send: Send) -> None:
        content_type = b""
        for attempt in range(1, ATTEMPTS + 1):
            started = False
            stream = self._engines.remote(scope["method"], scope["path"], scope.get("query_string", b""),
                                          [tuple(header) for header in scope["headers"]], body, hashes=hashes)
            try:
                async for message in stream:
                    if message["type"] == "http.response.start":
                        content_type = dict(message["headers"]).get(b"content-type", b"")
                    started = True
                    await send(message)
                return
            except BackPressureError as full:
                response = error_response(429, str(full), code="queue_full", headers={"Retry-After": "1"})
                return await response(scope, _nothing, send)
            except RayActorError as died:
                log.warning("A replica died under a request (attempt %d): %s", attempt, type(died).__name__)
                if started:
                    return await _end_stream(content_type, send)
            finally:
                stream.cancel()  # does nothing to one that has ended
        response = error_response(503, f"{ATTEMPTS} replicas in turn ended before they could answer.")
        await response(scope, _nothing, send)


async def _end_stream(content_type: bytes, send: Send) -> None:
    """Tell the reader of a stream that no more will come; the status is out already."""
    if not content_type.startswith(b"text/event-stream"):
        raise RuntimeError("the replica ended in the middle of an answer")  # the connection is closed, not ended well
    error = json.dumps(error_body(500, "The replica that served this stream ended; send the request again."))
    await send({"type": "http.response.body", "body": f"data: {error}\n\ndata: [DONE]\n\n".encode()})


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{event}.complete"})
        if event == "shutdown":
            return
