"""What the endpoints of one server share, and how they get at it."""

from typing import Annotated

from fastapi import Depends, Request

from nanovllm.async_llm import AsyncLLM
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.server.chat_format import ChatFormat
from nanovllm.server.errors import UnknownModel
from nanovllm.server.metrics import Metrics
from nanovllm.server.prompts import PromptEncoder
from nanovllm.server.response_store import ResponseStore
from nanovllm.serving.sampling_defaults import SamplingDefaults, room_after
from nanovllm.utils.checks import check

MAX_SAMPLES = 1024  # of one call, where the queue has no limit of its own


class ServerState:
    """One server's engine, metrics and limits.

    Owns nothing that runs: the AsyncLLM is the application's to close. model_name: what clients call the model.
    created: when the server started, in seconds since 1970. defaults: of requests that do not say how to draw.
    chat_format: what the model's chats consist of. responses: those that clients may come back to.
    """

    def __init__(self, llm: AsyncLLM, model_name: str, metrics: Metrics, created: int, defaults: SamplingDefaults,
                 chat_format: ChatFormat, responses: ResponseStore):
        self.llm, self.model_name, self.metrics, self.created, self.defaults = llm, model_name, metrics, created, defaults
        self.responses = responses
        self.format, self.encoder = chat_format, PromptEncoder(llm.llm, chat_format)

    @property
    def engine(self) -> LLMEngine:
        return self.llm.llm.engine

    @property
    def vocab_size(self) -> int:
        return int(self.engine.config.hf_config.vocab_size)

    def require_model(self, asked: str | None) -> None:
        """Raise UnknownModel unless the client asked for the model that is served, or for none in particular."""
        if asked not in (None, self.model_name):
            raise UnknownModel(f"The model {asked!r} is not served here; this server has {self.model_name!r}.")

    def check_room(self, num_samples: int) -> None:
        """Raise ValueError for more samples than one call may ask for; QueueFull when so many cannot be queued now."""
        limit = self.llm.max_queued or MAX_SAMPLES
        check(num_samples <= limit, "n", num_samples, f"at most {limit}, prompts times n, on this server",
              "ask for fewer at once")
        self.llm.check_room(num_samples)

    def room_after(self, num_prompt_tokens: int) -> int:
        """How many tokens may follow a prompt."""
        return room_after(self.engine, num_prompt_tokens)


async def _state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(_state_of)]
"""The type of an endpoint's parameter that is to receive the server's state."""
