"""What a client gets: the OpenAI API's response bodies and stream chunks, as plain dicts. Chats: see `chat_replies`."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from nanovllm.outputs import CompletionOutput, Logprob, RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.errors import error_body
from nanovllm.server.protocol import CompletionRequest, GenerationRequest
from nanovllm.server.schemas import (
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
    PromptLogprobs,
    UsageBody,
)
from nanovllm.serving.request import Delta

Chunk = dict[str, Any]
LogprobEntry = dict[int, Logprob]
LEAST_LOGPROB = -9999.0  # JSON has no infinity


class Reply:
    """One answer in the making, whole or in chunks.

    Owns nothing but the tallies that a stream needs. `index` counts choices: prompt i's sample j is choice i * n + j.
    """

    kind, prefix = "", ""
    end_of_stream: str | None = "data: [DONE]\n\n"

    def __init__(self, body: GenerationRequest, params: SamplingParams, model: str, request_id: str):
        self._num_samples, self._num_logprobs = params.n, params.logprobs
        self._returns_token_ids = bool(body.return_token_ids)
        self._names_tokens_by_id = bool(body.return_tokens_as_token_ids)
        self._returns_prompt_logprobs = body.prompt_logprobs is not None
        self.only_prompt = body.only_prompt
        options = body.stream_options
        self._includes_usage = bool(options and options.include_usage)
        self._includes_usage_always = self._includes_usage and bool(options and options.continuous_usage_stats)
        self._offsets: Counter[int] = Counter()  # of each choice: characters of the tokens reported so far
        self._num_prompt_tokens: dict[int, int] = {}  # of each prompt
        self._num_tokens: Counter[int] = Counter()  # of each prompt: tokens streamed so far
        self._id, self._created, self._model = f"{self.prefix}-{request_id}", int(time.time()), model

    def opening(self, prompt: int, num_prompt_tokens: int) -> list[Chunk]:
        """Chunks that come before any token is drawn."""
        self._num_prompt_tokens[prompt] = num_prompt_tokens
        return []

    def beginning(self, prompt: int, prompt_token_ids: list[int], text: str | None,
                  prompt_logprobs: list[LogprobEntry | None] | None) -> list[Chunk]:
        """Chunks that come once a prompt has been computed, and before what is generated."""
        raise NotImplementedError

    def chunks(self, prompt: int, delta: Delta) -> list[Chunk]:
        """The chunks that say what a delta says; none for one that has nothing to say yet."""
        raise NotImplementedError

    def closing(self, outputs: list[RequestOutput]) -> list[Chunk]:
        """Chunks that come after all text: the usage, when it was asked for."""
        return [self._chunk([]) | {"usage": self._usage(outputs)}] if self._includes_usage else []

    def failing(self, message: str) -> list[Chunk]:
        """What a stream ends with when its request fails: the status is out by then."""
        return [dict(error_body(500, message))]

    @staticmethod
    def encoded(chunk: Chunk) -> str:
        """A chunk as a server-sent event."""
        return f"data: {json.dumps(chunk)}\n\n"

    def _index(self, prompt: int, sample: int) -> int:
        return prompt * self._num_samples + sample

    def _chunk(self, choices: Sequence[Chunk | CompletionChoice], prompt: int | None = None) -> Chunk:
        chunk: Chunk = {"id": self._id, "object": self.kind, "created": self._created, "model": self._model,
                        "choices": list(choices)}
        if self._includes_usage_always and prompt is not None:
            chunk["usage"] = usage_body(self._num_prompt_tokens[prompt], self._num_tokens[prompt], 0)
        elif self._includes_usage:
            chunk["usage"] = None
        return chunk

    def _usage(self, outputs: list[RequestOutput]) -> UsageBody:
        generated = 0 if self.only_prompt else sum(output.usage.completion_tokens for output in outputs)
        return usage_body(sum(output.usage.prompt_tokens for output in outputs), generated,
                           sum(output.usage.cached_tokens for output in outputs))

    def _token_text(self, token: int, entry: Logprob) -> str:
        return f"token_id:{token}" if self._names_tokens_by_id else entry.decoded_token or ""


class CompletionReply(Reply):
    """One answer of /v1/completions."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, body: CompletionRequest, params: SamplingParams, model: str, request_id: str,
                 decode: Callable[[list[int]], str]):
        """decode: the text of token ids, for a prompt's first token, of which the engine reports nothing."""
        super().__init__(body, params, model, request_id)
        self.echoes, self._decode = body.echoes, decode

    def whole(self, outputs: list[RequestOutput], prompts: list[str | None]) -> CompletionBody:
        """prompts: their texts, which an echo begins with."""
        choices = [self._choice(self._index(i, sample.index), sample, output, text)
                   for i, (output, text) in enumerate(zip(outputs, prompts)) for sample in output.outputs]
        return {"id": self._id, "object": self.kind, "created": self._created, "model": self._model, "choices": choices,
                "usage": self._usage(outputs)}

    def beginning(self, prompt: int, prompt_token_ids: list[int], text: str | None,
                  prompt_logprobs: list[LogprobEntry | None] | None) -> list[Chunk]:
        chunks = []
        for sample in range(self._num_samples):
            index = self._index(prompt, sample)
            choice: CompletionChoice = {"index": index, "text": "", "logprobs": None,
                                        "finish_reason": None, "stop_reason": None}
            if self.echoes:
                choice["text"] = text or ""
                choice["logprobs"] = self._logprobs(index, prompt_token_ids, prompt_logprobs)
            if self._returns_token_ids:
                choice |= {"prompt_token_ids": prompt_token_ids, "token_ids": []}
            if self.echoes or self._returns_token_ids:
                chunks.append(self._chunk([choice], prompt))
        return chunks

    def chunks(self, prompt: int, delta: Delta) -> list[Chunk]:
        self._num_tokens[prompt] += 0 if self.only_prompt else len(delta.token_ids)
        tells_tokens = delta.token_ids and not self.only_prompt and (
            self._num_logprobs is not None or self._returns_token_ids or self._includes_usage_always)
        if not ((delta.text and not self.only_prompt) or delta.finish_reason or tells_tokens):
            return []
        return [self._chunk([self._choice(self._index(prompt, delta.index), delta)], prompt)]

    def _choice(self, index: int, part: CompletionOutput | Delta, output: RequestOutput | None = None,
                prompt: str | None = None) -> CompletionChoice:
        """output: of a whole answer, not of a stream's, whose prompt went out in `beginning`."""
        token_ids, logprobs, text = ([], [], "") if self.only_prompt else (part.token_ids, part.logprobs or [], part.text)
        entries: list[LogprobEntry | None] = list(logprobs)
        reported = list(token_ids[:len(entries)])
        if output is not None and self.echoes:
            text = (prompt or "") + text
            if output.prompt_logprobs is not None:
                entries, reported = output.prompt_logprobs + entries, output.prompt_token_ids + reported
        ended = ("length", None) if self.only_prompt and part.finish_reason else (part.finish_reason, part.stop_reason)
        choice: CompletionChoice = {"index": index, "text": text, "logprobs": self._logprobs(index, reported, entries),
                                    "finish_reason": ended[0], "stop_reason": ended[1]}
        if self._returns_token_ids:
            choice["token_ids"] = list(token_ids)
            if output is not None:
                choice["prompt_token_ids"] = output.prompt_token_ids
        if output is not None and self._returns_prompt_logprobs:
            choice["prompt_logprobs"] = prompt_logprobs_body(output)
        return choice

    def _logprobs(self, index: int, token_ids: list[int], entries: Sequence[LogprobEntry | None] | None
                  ) -> CompletionLogprobs | None:
        """entries: one for each token; None for a prompt's first, of which the model thinks nothing."""
        if self._num_logprobs is None or entries is None:
            return None
        tokens = [self._first_text(token) if entry is None else self._token_text(token, entry[token])
                  for token, entry in zip(token_ids, entries)]
        *offsets, self._offsets[index] = accumulate(map(len, tokens), initial=self._offsets[index])
        return {"tokens": tokens,
                "token_logprobs": [None if entry is None else finite(entry[token].logprob)
                                   for token, entry in zip(token_ids, entries)],
                "top_logprobs": [None if entry is None else {self._token_text(i, e): finite(e.logprob)
                                                             for i, e in entry.items()} for entry in entries],
                "text_offset": offsets}

    def _first_text(self, token: int) -> str:
        return f"token_id:{token}" if self._names_tokens_by_id else self._decode([token])


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def prompt_logprobs_body(output: RequestOutput) -> PromptLogprobs | None:
    """In vLLM's form: {token id, as text: {logprob, rank, decoded_token}} for each token of the prompt but the first."""
    if output.prompt_logprobs is None:
        return None
    return [None if entry is None else {
        str(token): {"logprob": finite(e.logprob), "rank": e.rank, "decoded_token": e.decoded_token}
        for token, e in entry.items()} for entry in output.prompt_logprobs]


def usage_body(prompt: int, generated: int, cached: int) -> UsageBody:
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached}}
