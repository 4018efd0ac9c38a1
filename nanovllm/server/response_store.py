"""The responses that clients may come back to, in memory, as many as there is room for."""

from collections import OrderedDict
from typing import NamedTuple

from nanovllm.server.messages import Message
from nanovllm.server.schemas import ResponseBody

MAX_CHARACTERS = 32 * 2**20  # of all conversations together


class StoredResponse(NamedTuple):
    """A response, and the conversation that ends with it, without its instructions, which hold for one response only."""

    body: ResponseBody
    messages: list[Message]
    num_characters: int


class ResponseStore:
    """Keeps the last responses. Owns them; the oldest go when there are too many, or when they hold too much text.

    max_responses: how many are kept; 0 keeps none.
    """

    def __init__(self, max_responses: int):
        self.max_responses = max_responses
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_characters = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, body: ResponseBody, messages: list[Message]) -> None:
        size = sum(len(message.model_dump_json()) for message in messages)
        self.pop(body["id"])
        self._stored[body["id"]] = StoredResponse(body, messages, size)
        self._num_characters += size
        while self._stored and (len(self._stored) > self.max_responses or self._num_characters > MAX_CHARACTERS):
            self.pop(next(iter(self._stored)))

    def get(self, response_id: str) -> StoredResponse | None:
        return self._stored.get(response_id)

    def pop(self, response_id: str) -> StoredResponse | None:
        """Forget a response; returns it, or None where there is none."""
        stored = self._stored.pop(response_id, None)
        self._num_characters -= stored.num_characters if stored else 0
        return stored
