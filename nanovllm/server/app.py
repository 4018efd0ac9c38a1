"""The application: an engine, the endpoints that use it, and what stands before them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from nanovllm import __version__
from nanovllm.async_llm import AsyncLLM
from nanovllm.server import errors, generation, openapi, responses, status, tokens
from nanovllm.server.chat_format import ChatFormat
from nanovllm.server.guard import OPEN_PATHS, Guard
from nanovllm.server.metrics import CountResponses, Metrics
from nanovllm.server.request_ids import HEADER, RequestIds
from nanovllm.server.response_store import ResponseStore
from nanovllm.server.state import ServerState
from nanovllm.serving.sampling_defaults import SamplingDefaults
from nanovllm.utils.gguf_file import model_name

DEFAULT_MAX_BODY_BYTES = 4 * 2**20
DEFAULT_MAX_STORED_RESPONSES = 1024
DESCRIPTION = "The OpenAI API's completions, chat completions and responses, and what vLLM's server adds to them."


def create_app(llm: AsyncLLM, *, served_model_name: str | None = None, api_key: str | None = None,
               max_body_bytes: int = DEFAULT_MAX_BODY_BYTES, receive_seconds: float = 60, generation_config: str = "auto",
               allowed_hosts: Sequence[str] | None = None, allowed_origins: Sequence[str] = (), public_metrics: bool = False,
               reasoning_parser: str = "auto", max_stored_responses: int = DEFAULT_MAX_STORED_RESPONSES) -> FastAPI:
    """An ASGI application that serves `llm`, and closes it when it shuts down.

    served_model_name: what clients call the model; None is the name of its folder, or of the package's model.
    generation_config: "auto" draws as the model's generation_config.json recommends where a request does not say; "vllm"
        does not read it.
    allowed_origins: the web pages whose scripts may read the answers (CORS); "*" is every one.
    public_metrics: answer /metrics without the key. reasoning_parser: see `ChatFormat`. max_stored_responses: see
        `ResponseStore`. The rest: see `Guard`.

    Raises ValueError for what cannot be served.
    """
    metrics = Metrics(llm.llm.engine)
    llm.on_output = metrics.observe
    defaults = SamplingDefaults.of_model(llm.llm.config.model, generation_config)
    name = model_name(llm.llm.config.model) if served_model_name is None else served_model_name

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(llm.llm.grammars.prepare)
        yield
        await llm.close()

    app = FastAPI(title="nanovllm", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.server = ServerState(llm, name, metrics, int(time.time()), defaults,
                                   ChatFormat(llm.llm.tokenizer, reasoning_parser), ResponseStore(max_stored_responses))
    errors.install(app)
    openapi.install(app)
    # The last one added is the outermost: every answer has a request's id and is counted, what the guard refuses too, and
    # a browser's question whether it may ask, which holds no key, is answered before the guard.
    app.add_middleware(Guard, api_key=api_key, open_paths=OPEN_PATHS | ({"/metrics"} if public_metrics else set()),
                       allowed_hosts=None if allowed_hosts is None else tuple(allowed_hosts), max_body_bytes=max_body_bytes,
                       receive_seconds=receive_seconds)
    if allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(allowed_origins), allow_methods=["*"], allow_headers=["*"],
                           expose_headers=[HEADER])
    app.add_middleware(CountResponses, metrics=metrics)
    app.add_middleware(RequestIds)
    for router in (generation.router, responses.router, tokens.router, status.router):
        app.include_router(router)
    return app
