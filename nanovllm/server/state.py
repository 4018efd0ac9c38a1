"""What the endpoints of one server share, and how they get at it."""

from typing import Annotated

from fastapi import Depends, Request

from nanovllm.async_llm import AsyncLLM, AsyncRequest
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.llm import LLM, Prompt
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.errors import UnknownModel
from nanovllm.server.metrics import Metrics
from nanovllm.utils.checks import check


class ServerState:
    """One server's engine, metrics and limits.

    Owns nothing that runs: the AsyncLLM is the application's to close. model_name: what clients call the model.
    created: when the server started, in seconds since 1970.
    """

    def __init__(self, llm: AsyncLLM, model_name: str, metrics: Metrics, created: int):
        self.llm, self.model_name, self.metrics, self.created = llm, model_name, metrics, created

    @property
    def sync_llm(self) -> LLM:
        return self.llm.llm

    @property
    def engine(self) -> LLMEngine:
        return self.sync_llm.engine

    @property
    def vocab_size(self) -> int:
        return int(self.engine.config.hf_config.vocab_size)

    def require_model(self, asked: str | None) -> None:
        """Raise UnknownModel unless the client asked for the model that is served, or for none in particular."""
        if asked not in (None, self.model_name):
            raise UnknownModel(f"The model {asked!r} is not served here; this server has {self.model_name!r}.")

    def room_after(self, num_prompt_tokens: int) -> int:
        """How many tokens may follow a prompt; the last one needs no place in the cache."""
        blocks = self.engine.block_manager
        longest = min(self.engine.config.max_model_len, blocks.num_blocks * blocks.block_size + 1)
        return max(1, longest - num_prompt_tokens)

    async def submit(self, prompts: list[Prompt], params: SamplingParams, *, wants_deltas: bool) -> list[AsyncRequest]:
        """Queue all prompts of one call, or none: what is queued already is aborted when a later one is refused."""
        num_samples, limit = len(prompts) * params.n, self.llm.max_queued
        check(limit is None or num_samples <= limit, "n", num_samples, f"at most {limit}, prompts times n, on this server",
              "ask for fewer at once")
        running: list[AsyncRequest] = []
        try:
            for prompt in prompts:
                running.append(await self.llm.submit(prompt, params, wants_deltas=wants_deltas))
        except BaseException:
            for request in running:
                request.abort()
            raise
        return running


async def _state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(_state_of)]
"""The type of an endpoint's parameter that is to receive the server's state."""
