"""What a client of /v1/chat/completions gets, whole or in chunks."""

from collections.abc import Sequence

from nanovllm.outputs import CompletionOutput, Logprob, RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.chat_protocol import ChatCompletionRequest
from nanovllm.server.replies import Chunk, LogprobEntry, Reply, finite, prompt_logprobs_body
from nanovllm.server.schemas import ChatChoice, ChatCompletionBody, ChatLogprobs, CompletionChoice, TokenLogprob
from nanovllm.serving.request import Delta


class ChatReply(Reply):
    """One answer of /v1/chat/completions."""

    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, body: ChatCompletionRequest, params: SamplingParams, model: str, request_id: str):
        super().__init__(body, params, model, request_id)

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
        chunks, logprobs = [], self._logprobs(delta)
        self._num_tokens[prompt] += len(delta.token_ids)
        tells_tokens = delta.token_ids and (self._returns_token_ids or self._includes_usage_always)
        if not self.only_prompt and (delta.text or logprobs or tells_tokens):
            choice = self._delta(delta.index, {"content": delta.text}, logprobs)
            if self._returns_token_ids:
                choice["token_ids"] = delta.token_ids
            chunks.append(self._chunk([choice], prompt))
        if delta.finish_reason:
            chunks.append(self._chunk([self._delta(delta.index, {}, None, delta.finish_reason, delta.stop_reason)], prompt))
        return chunks

    def _chunk(self, choices: Sequence[Chunk | CompletionChoice], prompt: int | None = None) -> Chunk:
        return super()._chunk(choices, prompt) | {"object": "chat.completion.chunk"}

    @staticmethod
    def _delta(index: int, delta: dict[str, str], logprobs: ChatLogprobs | None = None, finish_reason: str | None = None,
               stop_reason: str | int | None = None) -> Chunk:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason,
                "stop_reason": stop_reason}

    def _choice(self, part: CompletionOutput) -> ChatChoice:
        text = "" if self.only_prompt else part.text
        choice: ChatChoice = {
            "index": part.index, "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if self.only_prompt else self._logprobs(part),
            "finish_reason": "length" if self.only_prompt else part.finish_reason,
            "stop_reason": None if self.only_prompt else part.stop_reason}
        if self._returns_token_ids:
            choice["token_ids"] = [] if self.only_prompt else part.token_ids
        return choice

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
