"""The endpoints of /v1/responses: to make a response, to see one again, and to have one forgotten."""

import json
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nanovllm.outputs import CompletionOutput, Logprob, RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.errors import REFUSALS, REFUSALS_OF_GET, error_response
from nanovllm.server.generation import answers, check_request, client_has_left, outputs_of, submit_chat
from nanovllm.server.messages import Message
from nanovllm.server.replies import Chunk
from nanovllm.server.response_events import ResponseEvents
from nanovllm.server.response_items import messages_of
from nanovllm.server.responses_protocol import ResponsesRequest
from nanovllm.server.schemas import DeletedResponseBody, ResponseBody, ResponseUsageBody
from nanovllm.server.state import ServerState, State
from nanovllm.server.streaming import EventStream
from nanovllm.server.tool_protocol import CalledFunction, MessageToolCall
from nanovllm.serving.answer import Answer, AnswerFormat, AnswerParser, whole_pieces
from nanovllm.serving.request import Delta
from nanovllm.utils.checks import check

router = APIRouter()


@router.post("/v1/responses", responses=answers(ResponseBody))
async def create_response(body: ResponsesRequest, request: Request, state: State) -> Response:
    """Answer, after what was said before."""
    messages = [*_said_before(body, state), *messages_of(body.input)]
    chat = body.as_chat(messages)
    params = check_request(state, chat, 1)
    prompt, form, params, running = await submit_chat(state, chat, params)
    reply = ResponseReply(body, params, state, form, messages)
    if body.stream:
        return EventStream(running, reply, [prompt.text])
    outputs = await outputs_of(request, running)
    return client_has_left() if outputs is None else JSONResponse(reply.whole(outputs[0]))


@router.get("/v1/responses/{response_id}", responses={**REFUSALS_OF_GET, 404: REFUSALS[404]}, response_model=ResponseBody)
async def response(response_id: str, state: State) -> Response:
    """A response that was made before."""
    stored = state.responses.get(response_id)
    return _unknown(response_id) if stored is None else JSONResponse(stored.body)


@router.delete("/v1/responses/{response_id}", responses={**REFUSALS_OF_GET, 404: REFUSALS[404]},
               response_model=DeletedResponseBody)
async def delete_response(response_id: str, state: State) -> Response:
    """Forget a response."""
    stored = state.responses.pop(response_id)
    return _unknown(response_id) if stored is None else JSONResponse(
        {"id": response_id, "object": "response", "deleted": True})


def _unknown(response_id: str) -> Response:
    return error_response(404, f"response_id={response_id[:100]!r}: there is no such response; those that were stored "
                          "longest ago are forgotten.", "response_id", "response_not_found")


def _said_before(body: ResponsesRequest, state: ServerState) -> list[Message]:
    """The conversation that ends with the previous response."""
    if body.previous_response_id is None:
        return []
    stored = state.responses.get(body.previous_response_id)
    limit = "the id of a response that is stored" if state.responses.max_responses else "left out, as this server stores none"
    check(stored is not None, "previous_response_id", body.previous_response_id, limit, "send the whole conversation as input")
    assert stored is not None
    return stored.messages


class ResponseReply:
    """One answer of /v1/responses, whole or as events: see `EventStream`. Stores it when it ends."""

    end_of_stream: str | None = None  # the last event says that it is the last

    def __init__(self, body: ResponsesRequest, params: SamplingParams, state: ServerState, form: AnswerFormat,
                 messages: list[Message]):
        self._body, self._state, self._form, self._messages = body, state, form, messages
        self._parser = AnswerParser(form)
        self._events = ResponseEvents(self._empty(body, params, state))

    def whole(self, output: RequestOutput) -> ResponseBody:
        sample = output.outputs[0]
        for piece in whole_pieces(sample.text, self._form):
            self._events.add(piece)
        self._end(output)
        return self._events.response

    def opening(self, prompt: int, num_prompt_tokens: int) -> list[Chunk]:
        return self._events.begin()

    def beginning(self, prompt: int, prompt_token_ids: list[int], text: str | None,
                  prompt_logprobs: list[dict[int, Logprob] | None] | None) -> list[Chunk]:
        return []

    def chunks(self, prompt: int, delta: Delta) -> list[Chunk]:
        pieces = self._parser.push(delta.text, final=delta.finish_reason is not None)
        return [event for piece in pieces for event in self._events.add(piece)]

    def closing(self, outputs: list[RequestOutput]) -> list[Chunk]:
        return self._end(outputs[0])

    def failing(self, message: str) -> list[Chunk]:
        return self._events.end("failed", error=message)

    @staticmethod
    def encoded(chunk: Chunk) -> str:
        return f"event: {chunk['type']}\ndata: {json.dumps(chunk)}\n\n"

    def _end(self, output: RequestOutput) -> list[Chunk]:
        sample, response = output.outputs[0], self._events.response
        response["usage"] = self._usage(output, sample)
        response["completed_at"] = int(time.time())
        if sample.finish_reason == "length":
            events = self._events.end("incomplete", reason="max_output_tokens")
        else:
            events = self._events.end()
        if response["store"]:
            self._state.responses.put(response, [*self._messages, self._message(sample)])
        return events

    def _message(self, sample: CompletionOutput) -> Message:
        """The answer as the conversation goes on with it, its calls under the names that the client got."""
        answer = Answer.of(sample.text, self._form)
        ids = [item["call_id"] for item in self._events.response["output"] if item["type"] == "function_call"]
        calls = [MessageToolCall(id=call_id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments))
                 for call_id, call in zip(ids, answer.calls)]
        return Message(role="assistant", content=answer.content, tool_calls=calls or None,
                       reasoning_content=answer.reasoning or None)

    def _usage(self, output: RequestOutput, sample: CompletionOutput) -> ResponseUsageBody:
        usage = output.usage
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens,
                "total_tokens": usage.total_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": self._state.format.num_reasoning_tokens(self._form, sample)}}

    @staticmethod
    def _empty(body: ResponsesRequest, params: SamplingParams, state: ServerState) -> ResponseBody:
        """The response as it is before anything is said: what was asked for, and how it is drawn."""
        effort = body.reasoning.effort if body.reasoning else None
        form: dict[str, Any] = {"type": "text"} if body.text is None or body.text.format is None else (
            body.text.format.model_dump(by_alias=True, exclude_none=True))
        return {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()), "completed_at": None,
            "status": "in_progress", "error": None, "incomplete_details": None, "model": state.model_name,
            "instructions": body.instructions, "output": [], "usage": None, "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False, "tool_choice": body.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "temperature": params.temperature, "top_p": params.top_p, "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None, "previous_response_id": body.previous_response_id, "background": False,
            "reasoning": {"effort": effort, "summary": None}, "service_tier": "default",
            "store": body.store is not False and state.responses.max_responses > 0, "text": {"format": form},
            "top_logprobs": 0, "truncation": "disabled", "user": body.user}
