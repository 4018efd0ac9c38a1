"""The endpoints that generate text: /v1/completions and /v1/chat/completions."""

import asyncio
import inspect

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from transformers import PreTrainedTokenizerBase

from nanovllm.llm import Prompt
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.protocol import ChatCompletionRequest, CompletionRequest
from nanovllm.server.replies import ChatReply, CompletionReply
from nanovllm.server.state import ServerState, State
from nanovllm.server.streaming import ClientDisconnected, EventStream, unless_disconnected
from nanovllm.utils.checks import check

router = APIRouter()

DEFAULT_MAX_TOKENS = 16  # of a completion, as in the OpenAI API; a chat's answer may take all the room there is

TEMPLATE_ARGUMENTS = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request, state: State) -> Response:
    """Continue one prompt or several."""
    state.require_model(body.model)
    params = body.sampling_params(state.vocab_size, DEFAULT_MAX_TOKENS)
    reply = CompletionReply(state.model_name, params.n, params.logprobs, body.include_usage)
    return await answer(state, request, body.prompt, params, reply, stream=bool(body.stream))


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatCompletionRequest, request: Request, state: State) -> Response:
    """Write the assistant's next message of a conversation."""
    state.require_model(body.model)
    prompt = await asyncio.to_thread(chat_token_ids, state, body)
    params = body.sampling_params(state.vocab_size, state.room_after(len(prompt)))
    reply = ChatReply(state.model_name, params.n, params.logprobs, body.include_usage)
    return await answer(state, request, [prompt], params, reply, stream=bool(body.stream))


async def answer(state: ServerState, request: Request, prompts: list[Prompt], params: SamplingParams, reply: CompletionReply,
                 *, stream: bool) -> Response:
    """Run the prompts, and abort them when the client disconnects."""
    running = await state.submit(prompts, params, wants_deltas=stream)
    if stream:
        return EventStream(running, reply)
    try:
        outputs = await unless_disconnected(request.receive, asyncio.gather(*(r.output() for r in running)))
    except ClientDisconnected:
        return Response(status_code=499)  # nobody reads it but the log
    finally:
        for r in running:
            r.abort()
    return JSONResponse(reply.whole(outputs))


def chat_token_ids(state: ServerState, body: ChatCompletionRequest) -> list[int]:
    """The prompt's tokens, as the model's chat template writes them."""
    extras = body.chat_template_kwargs or {}
    for key in extras:  # a template's own variables, never the tokenizer's arguments: a template is a program
        check(key not in TEMPLATE_ARGUMENTS, "chat_template_kwargs", key, "a variable of the model's chat template",
              "leave it out")
    text = state.sync_llm.render_chat([message.for_template() for message in body.messages], **extras)
    token_ids: list[int] = state.sync_llm.tokenizer.encode(text)
    return token_ids
