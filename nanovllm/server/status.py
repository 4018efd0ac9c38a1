"""The endpoints that say something of the server itself: its model, its health, its metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nanovllm.server.state import State

router = APIRouter()


@router.get("/v1/models")
async def models(state: State) -> dict[str, Any]:
    """The one model there is."""
    return {"object": "list", "data": [await model(state.model_name, state)]}


@router.get("/v1/models/{model_name:path}")
async def model(model_name: str, state: State) -> dict[str, Any]:
    """One model, by its name."""
    state.require_model(model_name)
    return {"id": state.model_name, "object": "model", "created": state.created, "owned_by": "nanovllm",
            "max_model_len": state.engine.config.max_model_len}


@router.get("/health")
async def health(state: State) -> Response:
    """Whether the engine can serve: 200, or 503 with the reason."""
    if not state.llm.is_open:
        return JSONResponse({"status": "closed"}, 503)
    failure = state.engine.failure
    return JSONResponse({"status": "broken", "reason": failure}, 503) if failure else JSONResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request, state: State) -> Response:
    """Everything that Prometheus may ask, in the format that it asks for."""
    content, content_type = state.metrics.exposition(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})
