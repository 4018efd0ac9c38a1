"""The endpoints that say something of the server itself: its model, its health, its metrics, and what it does not offer."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nanovllm import __version__
from nanovllm.server.errors import REFUSALS, REFUSALS_OF_GET, error_response
from nanovllm.server.schemas import HealthBody, LoadBody, ModelBody, ModelsBody, VersionBody
from nanovllm.server.state import ServerState, State

router = APIRouter(responses=REFUSALS_OF_GET)

BROKEN: dict[int | str, dict[str, Any]] = {503: {"model": HealthBody, "description": "It can serve nothing; `reason` says why"}}
NOT_OFFERED = {
    "/v1/embeddings": "the model writes text and embeds none", "/v1/rerank": "the model writes text and ranks none",
    "/v1/score": "for log-probabilities of a text use /v1/completions with echo and logprobs",
    "/v1/moderations": "the model writes text and judges none", "/v1/images/generations": "the model writes text only",
    "/v1/audio/speech": "the model writes text only", "/v1/audio/transcriptions": "the model reads text only",
    "/v1/files": "requests are served one by one, not from files", "/v1/batches": "requests are served one by one",
}


def model_body(state: ServerState) -> ModelBody:
    return {"id": state.model_name, "object": "model", "created": state.created, "owned_by": "nanovllm",
            "max_model_len": state.engine.config.max_model_len}


@router.get("/v1/models")
async def models(state: State) -> ModelsBody:
    """The one model there is."""
    return {"object": "list", "data": [model_body(state)]}


@router.get("/v1/models/{model_name:path}", responses={404: REFUSALS[404]})
async def model(model_name: str, state: State) -> ModelBody:
    """One model, by its name."""
    state.require_model(model_name)
    return model_body(state)


@router.get("/health", responses={200: {"model": HealthBody}, **BROKEN})
async def health(state: State) -> Response:
    """Whether the engine can serve: 200, or 503 with the reason."""
    if not state.llm.is_open:
        return JSONResponse({"status": "closed"}, 503)
    failure = state.engine.failure
    return JSONResponse({"status": "broken", "reason": failure}, 503) if failure else JSONResponse({"status": "ok"})


@router.get("/ping", responses={200: {"model": HealthBody}, **BROKEN})
async def ping(state: State) -> Response:
    """The same, under the name that SageMaker asks for."""
    return await health(state)


@router.post("/ping", responses={200: {"model": HealthBody}, **BROKEN}, include_in_schema=False)
async def ping_by_post(state: State) -> Response:
    return await health(state)


@router.get("/version")
async def version() -> VersionBody:
    """This program's version."""
    return {"version": __version__}


@router.get("/load")
async def load(state: State) -> LoadBody:
    """How many calls of the OpenAI API are being answered."""
    return {"server_load": state.metrics.num_in_progress}


@router.get("/metrics", response_class=Response, responses={
    200: {"content": {"text/plain": {"schema": {"type": "string"}},
                      "application/openmetrics-text": {"schema": {"type": "string"}}},
          "description": "The Prometheus text format, or OpenMetrics where the Accept header asks for it"}})
async def metrics(request: Request, state: State) -> Response:
    """Everything that Prometheus may ask, in the format that it asks for."""
    content, content_type = state.metrics.exposition(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


async def not_offered(request: Request) -> Response:
    """An endpoint of the OpenAI API that is not here: clients read 404 as such, and are told where to go."""
    path = request.url.path
    return error_response(404, f"This server does not offer {path}: {NOT_OFFERED[path]}.", code="not_offered")


for _path in NOT_OFFERED:
    router.add_api_route(_path, not_offered, methods=["GET", "POST"], include_in_schema=False, response_model=None)
