"""The application: an engine, the endpoints that use it, and what stands before them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from nanovllm import __version__
from nanovllm.async_llm import AsyncLLM
from nanovllm.server import errors, generation, status
from nanovllm.server.guard import Guard
from nanovllm.server.metrics import CountResponses, Metrics
from nanovllm.server.state import ServerState

DEFAULT_MAX_BODY_BYTES = 4 * 2**20


def create_app(llm: AsyncLLM, *, served_model_name: str | None = None, api_key: str | None = None,
               max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> FastAPI:
    """An ASGI application that serves `llm`, and closes it when it shuts down.

    served_model_name: what clients call the model; None is the name of its folder. api_key: see `Guard`.
    """
    metrics = Metrics(llm.llm.engine)
    llm.on_output = metrics.observe

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await llm.close()

    app = FastAPI(title="nanovllm", version=__version__, lifespan=lifespan)
    app.state.server = ServerState(llm, served_model_name or llm.llm.config.model.name, metrics, int(time.time()))
    errors.install(app)
    app.add_middleware(Guard, api_key=api_key, max_body_bytes=max_body_bytes)
    app.add_middleware(CountResponses, metrics=metrics)  # added last, so outermost: it sees what the guard refuses
    for router in (generation.router, status.router):
        app.include_router(router)
    return app
