"""What a client gets: the OpenAI API's response bodies and stream chunks, as plain dicts."""

import time
import uuid
from collections import Counter
from itertools import accumulate
from typing import Any

from nanovllm.outputs import CompletionOutput, Logprob, RequestOutput
from nanovllm.serving.request import Delta

Json = dict[str, Any]


class CompletionReply:
    """One answer of /v1/completions. `index` counts choices: prompt i's sample j is choice i * n + j."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, model: str, num_samples: int, num_logprobs: int | None, include_usage: bool):
        self.num_samples, self.num_logprobs, self.include_usage = num_samples, num_logprobs, include_usage
        self._offsets: Counter[int] = Counter()  # of each choice: characters of the tokens reported so far
        reply_id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.head = {"id": reply_id, "object": self.kind, "created": int(time.time()), "model": model}

    def whole(self, outputs: list[RequestOutput]) -> Json:
        choices = [self._choice(self._index(i, sample.index), sample) for i, output in enumerate(outputs)
                   for sample in output.outputs]
        return self.head | {"choices": choices, "usage": usage(outputs)}

    def opening(self, prompt: int) -> list[Json]:
        """Chunks that come before any text."""
        return []

    def chunks(self, prompt: int, delta: Delta) -> list[Json]:
        """The chunks that say what a delta says; none for one that has nothing to say yet."""
        if not (delta.text or delta.finish_reason or (delta.logprobs and self.num_logprobs is not None)):
            return []
        return [self._chunk([self._choice(self._index(prompt, delta.index), delta)])]

    def closing(self, outputs: list[RequestOutput]) -> list[Json]:
        """Chunks that come after all text: the usage, when it was asked for."""
        return [self._chunk([]) | {"usage": usage(outputs)}] if self.include_usage else []

    def _index(self, prompt: int, sample: int) -> int:
        return prompt * self.num_samples + sample

    def _chunk(self, choices: list[Json]) -> Json:
        return self.head | {"choices": choices} | ({"usage": None} if self.include_usage else {})

    def _choice(self, index: int, part: CompletionOutput | Delta) -> Json:
        return {"index": index, "text": part.text, "logprobs": self._logprobs(index, part),
                "finish_reason": part.finish_reason, "stop_reason": part.stop_reason}

    def _logprobs(self, index: int, part: CompletionOutput | Delta) -> Json | None:
        if self.num_logprobs is None or part.logprobs is None:
            return None
        drawn = [entry[token] for token, entry in zip(part.token_ids, part.logprobs)]
        tokens = [token.decoded_token or "" for token in drawn]
        *offsets, self._offsets[index] = accumulate(map(len, tokens), initial=self._offsets[index])
        return {"tokens": tokens, "token_logprobs": [token.logprob for token in drawn],
                "top_logprobs": [{e.decoded_token: e.logprob for e in entry.values()} for entry in part.logprobs],
                "text_offset": offsets}


class ChatReply(CompletionReply):
    """One answer of /v1/chat/completions."""

    kind, prefix = "chat.completion", "chatcmpl"

    def opening(self, prompt: int) -> list[Json]:
        return [self._chunk([self._delta(i, {"role": "assistant", "content": ""})]) for i in range(self.num_samples)]

    def chunks(self, prompt: int, delta: Delta) -> list[Json]:
        chunks, logprobs = [], self._logprobs(delta.index, delta)
        if delta.text or logprobs:
            chunks.append(self._chunk([self._delta(delta.index, {"content": delta.text}, logprobs)]))
        if delta.finish_reason:
            chunks.append(self._chunk([self._delta(delta.index, {}, None, delta.finish_reason, delta.stop_reason)]))
        return chunks

    def _chunk(self, choices: list[Json]) -> Json:
        return super()._chunk(choices) | {"object": "chat.completion.chunk"}

    @staticmethod
    def _delta(index: int, delta: Json, logprobs: Json | None = None, finish_reason: str | None = None,
               stop_reason: str | int | None = None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason,
                "stop_reason": stop_reason}

    def _choice(self, index: int, part: CompletionOutput | Delta) -> Json:
        return {"index": index, "message": {"role": "assistant", "content": part.text, "refusal": None},
                "logprobs": self._logprobs(index, part),
                "finish_reason": part.finish_reason, "stop_reason": part.stop_reason}

    def _logprobs(self, index: int, part: CompletionOutput | Delta) -> Json | None:
        if self.num_logprobs is None or part.logprobs is None:
            return None
        content = []
        for token, entry in zip(part.token_ids, part.logprobs):
            likeliest = sorted((e for e in entry.values() if e.rank <= self.num_logprobs), key=lambda e: e.rank)
            content.append(_token(entry[token]) | {"top_logprobs": [_token(e) for e in likeliest]})
        return {"content": content, "refusal": None}


def _token(entry: Logprob) -> Json:
    text = entry.decoded_token or ""
    # A token that ends inside a character has no text of its own, and its bytes cannot be told from the text it got.
    return {"token": text, "logprob": entry.logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def usage(outputs: list[RequestOutput]) -> Json:
    prompt = sum(output.usage.prompt_tokens for output in outputs)
    completion = sum(output.usage.completion_tokens for output in outputs)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(output.usage.cached_tokens for output in outputs)}}
