"""The endpoints that generate text: /v1/completions and /v1/chat/completions."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nanovllm.async_llm import AsyncRequest
from nanovllm.errors import InvalidRequest
from nanovllm.outputs import RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.chat_format import refused_tools
from nanovllm.server.chat_protocol import ChatCompletionRequest
from nanovllm.server.chat_replies import ChatReply
from nanovllm.server.errors import REFUSALS
from nanovllm.server.prompts import EncodedPrompt
from nanovllm.server.protocol import CompletionRequest, GenerationRequest
from nanovllm.server.replies import CompletionReply
from nanovllm.server.request_ids import request_id_of
from nanovllm.server.schemas import ChatCompletionBody, CompletionBody
from nanovllm.server.shape_protocol import shape_of
from nanovllm.server.state import ServerState, State
from nanovllm.server.streaming import ClientDisconnected, EventStream, unless_disconnected
from nanovllm.serving.answer import AnswerFormat

router = APIRouter()


def answers(model: type) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of a generating endpoint."""
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"model": model, "content": events, "description": "The whole answer, or with `stream` its pieces as "
                  "server-sent events, the last of them `[DONE]`"}, **REFUSALS}


@router.post("/v1/completions", responses=answers(CompletionBody))
async def completions(body: CompletionRequest, request: Request, state: State) -> Response:
    """Continue one prompt or several."""
    params = check_request(state, body, len(body.prompt))
    prompts = await asyncio.to_thread(state.encoder.completion, body)
    reply = CompletionReply(body, params, state.model_name, request_id_of(request, body.request_id), state.encoder.decode)
    running = await submit(state, body, prompts, params)
    texts = [state.encoder.decode(p.token_ids) if reply.echoes and p.text is None else p.text for p in prompts]
    if body.stream:
        return EventStream(running, reply, texts)
    outputs = await outputs_of(request, running)
    return client_has_left() if outputs is None else JSONResponse(reply.whole(outputs, texts))


@router.post("/v1/chat/completions", responses=answers(ChatCompletionBody))
async def chat_completions(body: ChatCompletionRequest, request: Request, state: State) -> Response:
    """Write the assistant's next message of a conversation."""
    params = check_request(state, body, 1)
    prompt, form, params, running = await submit_chat(state, body, params)
    reply = ChatReply(body, params, state.model_name, request_id_of(request, body.request_id), form,
                      state.format.num_reasoning_tokens)
    if body.stream:
        return EventStream(running, reply, [prompt.text])
    outputs = await outputs_of(request, running)
    return client_has_left() if outputs is None else JSONResponse(reply.whole(outputs[0]))


def check_request(state: ServerState, body: GenerationRequest, num_prompts: int) -> SamplingParams:
    """Everything that can be said against a request before the work of encoding its prompt."""
    state.require_model(body.model)
    try:
        params = body.sampling_params(state.vocab_size, state.defaults)
    except InvalidRequest as error:
        raise body.in_own_words(error) from None
    state.check_room(num_prompts * params.n)
    return params


async def submit_chat(state: ServerState, body: ChatCompletionRequest, params: SamplingParams
                      ) -> tuple[EncodedPrompt, AnswerFormat, SamplingParams, list[AsyncRequest]]:
    """Queue one chat: (its prompt, what its answer consists of, what the engine was told, the request that runs)."""
    prompt, form = await asyncio.to_thread(state.encoder.chat, body)
    params = state.format.constrained(body, form, params)
    try:
        return prompt, form, params, await submit(state, body, [prompt], params)
    except InvalidRequest as error:
        raise refused_tools(error, body) from None


async def submit(state: ServerState, body: GenerationRequest, prompts: list[EncodedPrompt], params: SamplingParams
                 ) -> list[AsyncRequest]:
    """Queue all prompts of one call, or none: what is queued already is aborted when a later one is refused."""
    own_params = []
    for prompt in prompts:
        num_tokens = len(prompt.token_ids)
        own_params.append(body.fit(params, num_tokens, state.room_after(num_tokens), state.defaults))
    running: list[AsyncRequest] = []
    try:
        for prompt, own in zip(prompts, own_params):
            running.append(await state.llm.submit(prompt.token_ids, own, priority=body.priority or 0,
                                                  wants_deltas=bool(body.stream)))
    except BaseException as error:
        for request in running:
            request.abort()
        if isinstance(error, InvalidRequest):
            await asyncio.to_thread(check_shape, state, body)
        raise
    return running


def check_shape(state: ServerState, body: GenerationRequest) -> None:
    """Raise InvalidRequest, by the client's name for it, for a shape that cannot be compiled by itself.

    What cannot be compiled may hold more than that: thoughts, and calls of tools.
    """
    if shape := shape_of(body.response_format, body.structured_outputs):
        try:
            state.llm.llm.grammars.matcher(shape)
        except InvalidRequest as error:
            raise body.in_own_words(error) from None


async def outputs_of(request: Request, running: list[AsyncRequest]) -> list[RequestOutput] | None:
    """Wait for the whole answers; None when the client disconnects first, which aborts them."""
    try:
        return await unless_disconnected(request.receive, asyncio.gather(*(each.output() for each in running)))
    except ClientDisconnected:
        return None
    finally:
        for each in running:
            each.abort()


def client_has_left() -> Response:
    return Response(status_code=499)  # nobody reads it but the log
