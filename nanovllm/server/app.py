"""The routes of an OpenAI-compatible server."""

import asyncio
import inspect
import time
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from transformers import PreTrainedTokenizerBase

from nanovllm import __version__
from nanovllm.async_llm import AsyncLLM, AsyncRequest
from nanovllm.sampling_params import SamplingParams
from nanovllm.server import errors
from nanovllm.server.guard import Guard
from nanovllm.server.metrics import CountResponses, Metrics
from nanovllm.server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from nanovllm.server.replies import ChatReply, CompletionReply
from nanovllm.server.streaming import EventStream, HungUp, unless_hung_up
from nanovllm.utils.checks import check

DEFAULT_MAX_BODY_BYTES = 4 * 2**20
DEFAULT_MAX_TOKENS = 16  # of a completion, as in the OpenAI API; a chat's answer may take all the room there is

TEMPLATE_ARGUMENTS = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters


def create_app(llm: AsyncLLM, *, served_model_name: str | None = None, api_key: str | None = None,
               max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> FastAPI:
    """An ASGI application that serves `llm`, and closes it when it shuts down.

    served_model_name: what clients call the model; None is the name of its folder. api_key: see `Guard`.
    """
    name = served_model_name or llm.llm.config.model.name
    metrics = Metrics(llm.llm.engine)
    llm.on_output = metrics.observe
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(_):
        yield
        await llm.close()

    app = FastAPI(title="nanovllm", version=__version__, lifespan=lifespan)
    app.state.llm, app.state.metrics = llm, metrics
    errors.install(app)
    app.add_middleware(Guard, api_key=api_key, max_body_bytes=max_body_bytes)
    app.add_middleware(CountResponses, metrics=metrics)  # added last, so outermost: it sees what the guard refuses

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        require_model(body.model)
        params = sampling_params(body, DEFAULT_MAX_TOKENS)
        reply = CompletionReply(name, params.n, params.logprobs, body.include_usage)
        return await answer(request, body, body.prompt, params, reply)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        require_model(body.model)
        prompt = await asyncio.to_thread(chat_token_ids, body)
        params = sampling_params(body, room_after(len(prompt)))
        reply = ChatReply(name, params.n, params.logprobs, body.include_usage)
        return await answer(request, body, [prompt], params, reply)

    @app.get("/v1/models")
    def models() -> dict:
        return {"object": "list", "data": [model(name)]}

    @app.get("/v1/models/{model_name:path}")
    def model(model_name: str) -> dict:
        require_model(model_name)
        return {"id": name, "object": "model", "created": started, "owned_by": "nanovllm",
                "max_model_len": llm.llm.config.max_model_len}

    @app.get("/health")
    def health() -> Response:
        if not llm.is_open:
            return JSONResponse({"status": "closed"}, 503)
        failure = llm.llm.engine.failure
        return JSONResponse({"status": "broken", "reason": failure}, 503) if failure else JSONResponse({"status": "ok"})

    @app.get("/metrics")
    def prometheus(request: Request) -> Response:
        content, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    async def answer(request: Request, body: GenerationRequest, prompts: list, params: SamplingParams, reply: CompletionReply
                     ) -> Response:
        running = await submit(prompts, params, bool(body.stream))
        if body.stream:
            return EventStream(running, reply)
        try:
            outputs = await unless_hung_up(request.receive, asyncio.gather(*(r.output() for r in running)))
        except HungUp:
            return Response(status_code=499)  # nobody reads it but the log
        finally:
            for r in running:
                r.abort()
        return JSONResponse(reply.whole(outputs))

    async def submit(prompts: list, params: SamplingParams, wants_deltas: bool) -> list[AsyncRequest]:
        """All prompts of one call, or none: what is queued already is aborted when a later one is refused."""
        num_samples = len(prompts) * params.n
        check(llm.max_queued is None or num_samples <= llm.max_queued, "n", num_samples,
              f"at most {llm.max_queued}, prompts times n, on this server", "ask for fewer at once")
        running = []
        try:
            for prompt in prompts:
                running.append(await llm.submit(prompt, params, wants_deltas=wants_deltas))
        except BaseException:
            for r in running:
                r.abort()
            raise
        return running

    def sampling_params(body: GenerationRequest, default_max_tokens: int) -> SamplingParams:
        return body.sampling_params(llm.llm.config.hf_config.vocab_size, default_max_tokens)

    def chat_token_ids(body: ChatCompletionRequest) -> list[int]:
        extras = body.chat_template_kwargs or {}
        for key in extras:  # a template's own variables, never the tokenizer's arguments: a template is a program
            check(key not in TEMPLATE_ARGUMENTS, "chat_template_kwargs", key, "a variable of the model's chat template",
                  "leave it out")
        text = llm.llm.render_chat([message.for_template() for message in body.messages], **extras)
        return llm.llm.tokenizer.encode(text)

    def room_after(num_prompt_tokens: int) -> int:
        """How many tokens may follow a prompt; the last one needs no place in the cache."""
        engine = llm.llm.engine
        blocks = engine.block_manager
        return max(1, min(engine.config.max_model_len, blocks.num_blocks * blocks.block_size + 1) - num_prompt_tokens)

    def require_model(asked: str | None) -> None:
        if asked not in (None, name):
            raise errors.UnknownModel(f"The model {asked!r} is not served here; this server has {name!r}.")

    return app
