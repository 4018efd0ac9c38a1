"""What a client of /v1/chat/completions gets, whole or in chunks."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from nanovllm.outputs import CompletionOutput, Logprob, RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.chat_protocol import ChatCompletionRequest
from nanovllm.server.replies import Chunk, LogprobEntry, Reply, finite, prompt_logprobs_body
from nanovllm.server.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletionBody,
    ChatLogprobs,
    CompletionChoice,
    TokenLogprob,
    UsageBody,
)
from nanovllm.serving.answer import Answer, AnswerFormat, AnswerParser, AnswerPiece
from nanovllm.serving.request import Delta
from nanovllm.serving.thinking import Reasoning, Thinks
from nanovllm.serving.tool_calls import CallArguments, CallBegun, CallEnded, Content


class ChatReply(Reply):
    """One answer of /v1/chat/completions.

    form: what the answer consists of. num_reasoning_tokens: how many of a sample's tokens are thoughts.
    """

    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, body: ChatCompletionRequest, params: SamplingParams, model: str, request_id: str, form: AnswerFormat,
                 num_reasoning_tokens: Callable[[AnswerFormat, CompletionOutput], int]):
        super().__init__(body, params, model, request_id)
        self._form, self._num_reasoning_tokens = form, num_reasoning_tokens
        self._tells_thoughts = form.thinks is not Thinks.NO and body.include_reasoning is not False
        self._parsers = [AnswerParser(form) for _ in range(params.n)]
        self._has_called: set[int] = set()  # samples with a whole call

    def whole(self, output: RequestOutput) -> ChatCompletionBody:
        body: ChatCompletionBody = {
            "id": self._id, "object": self.kind, "created": self._created, "model": self._model,
            "choices": [self._choice(sample) for sample in output.outputs], "usage": self._usage([output])}
        if self._returns_prompt_logprobs:
            body["prompt_logprobs"] = prompt_logprobs_body(output)
        if self._returns_token_ids:
            body["prompt_token_ids"] = output.prompt_token_ids
        return body

    def opening(self, prompt: int, num_prompt_tokens: int) -> list[Chunk]:
        super().opening(prompt, num_prompt_tokens)
        return [self._chunk([self._delta(i, {"role": "assistant", "content": ""})], prompt) for i in range(self._num_samples)]

    def beginning(self, prompt: int, prompt_token_ids: list[int], text: str | None,
                  prompt_logprobs: list[LogprobEntry | None] | None) -> list[Chunk]:
        return [self._chunk([], prompt) | {"prompt_token_ids": prompt_token_ids}] if self._returns_token_ids else []

    def chunks(self, prompt: int, delta: Delta) -> list[Chunk]:
        logprobs = self._logprobs(delta)
        self._num_tokens[prompt] += len(delta.token_ids)
        choices: list[Chunk] = []
        if not self.only_prompt:
            choices = [self._delta(delta.index, said) for said in self._said(delta)]
            tells_tokens = delta.token_ids and (self._returns_token_ids or self._includes_usage_always)
            if not choices and (logprobs or tells_tokens):
                choices.append(self._delta(delta.index, {"content": ""} if self._form.is_plain else {}))
            if choices:
                choices[0]["logprobs"] = logprobs
                if self._returns_token_ids:
                    choices[0]["token_ids"] = delta.token_ids
                    choices[1:] = [choice | {"token_ids": []} for choice in choices[1:]]
        if delta.finish_reason:
            reason = _finish_reason(delta.finish_reason, delta.index in self._has_called)
            choices.append(self._delta(delta.index, {}, reason, delta.stop_reason))
        return [self._chunk([choice], prompt) for choice in choices]

    def _said(self, delta: Delta) -> list[dict[str, Any]]:
        """What the text of a delta settles, a part of a message for each piece."""
        if self._form.is_plain:
            return [{"content": delta.text}] if delta.text else []
        pieces = self._parsers[delta.index].push(delta.text, final=delta.finish_reason is not None)
        if any(isinstance(piece, CallEnded) for piece in pieces):
            self._has_called.add(delta.index)
        return [said for piece in pieces if (said := self._part(piece))]

    def _part(self, piece: AnswerPiece) -> dict[str, Any] | None:
        if isinstance(piece, Reasoning):
            return {"reasoning_content": piece.text} if self._tells_thoughts else None
        if isinstance(piece, Content):
            return {"content": piece.text}
        if isinstance(piece, CallBegun):
            return {"tool_calls": [{"index": piece.index, "id": new_call_id(), "type": "function",
                                    "function": {"name": piece.name, "arguments": ""}}]}
        if isinstance(piece, CallArguments):
            return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
        return None  # a call that ended says no more; of one that broke all is out

    def _chunk(self, choices: Sequence[Chunk | CompletionChoice], prompt: int | None = None) -> Chunk:
        return super()._chunk(choices, prompt) | {"object": "chat.completion.chunk"}

    @staticmethod
    def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None, stop_reason: str | int | None = None
               ) -> Chunk:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "stop_reason": stop_reason}

    def _choice(self, part: CompletionOutput) -> ChatChoice:
        answer = Answer() if self.only_prompt else Answer.of(part.text, self._form)
        choice: ChatChoice = {
            "index": part.index, "message": self._message(answer),
            "logprobs": None if self.only_prompt else self._logprobs(part),
            "finish_reason": "length" if self.only_prompt else _finish_reason(part.finish_reason, bool(answer.calls)),
            "stop_reason": None if self.only_prompt else part.stop_reason}
        if self._returns_token_ids:
            choice["token_ids"] = [] if self.only_prompt else part.token_ids
        return choice

    def _message(self, answer: Answer) -> AssistantMessage:
        message: AssistantMessage = {"role": "assistant", "content": answer.content, "refusal": None}
        if self._tells_thoughts:
            message["reasoning_content"] = answer.reasoning or None
        if answer.calls:
            message["content"] = answer.content or None
            message["tool_calls"] = [{"id": new_call_id(), "type": "function",
                                      "function": {"name": call.name, "arguments": call.arguments}} for call in answer.calls]
        return message

    def _usage(self, outputs: list[RequestOutput]) -> UsageBody:
        usage = super()._usage(outputs)
        if self._form.thinks is not Thinks.NO and not self.only_prompt:
            usage["completion_tokens_details"] = {"reasoning_tokens": sum(
                self._num_reasoning_tokens(self._form, sample) for output in outputs for sample in output.outputs)}
        return usage

    def _logprobs(self, part: CompletionOutput | Delta) -> ChatLogprobs | None:
        if self._num_logprobs is None or part.logprobs is None:
            return None
        content: ChatLogprobs = {"content": [], "refusal": None}
        for token, entry in zip(part.token_ids, part.logprobs):
            likeliest = sorted((e.rank, i) for i, e in entry.items() if e.rank <= self._num_logprobs)
            content["content"].append({**self._token(token, entry[token]),
                                       "top_logprobs": [self._token(i, entry[i]) for _, i in likeliest]})
        return content

    def _token(self, token: int, entry: Logprob) -> TokenLogprob:
        text = entry.decoded_token or ""
        # A token that ends inside a character has no text of its own, and its bytes cannot be told from the text it got.
        return {"token": self._token_text(token, entry), "logprob": finite(entry.logprob),
                "bytes": None if "\ufffd" in text else list(text.encode())}


def new_call_id() -> str:
    """Names one call, so that its result can name it."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _finish_reason(reason: str | None, has_called: bool) -> str | None:
    return "tool_calls" if has_called and reason == "stop" else reason
