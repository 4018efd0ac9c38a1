"""Arrivals as the requests of a load test: token numbers of `nanovllm.fleet.arrivals` made into prompts that a server reads."""

import json
from collections.abc import Iterable
from random import Random
from typing import Any

from benchmarks.load_client import Request
from nanovllm.fleet.arrivals import FIRST_PRIVATE, Arrival

ENDPOINTS = {"completions": "completions", "chat": "chat/completions"}
# Every vocabulary that we know has ordinary tokens at these places; control tokens stand before or behind them.
FIRST_ID, NUM_IDS = 300, 1700
# Words that most tokenizers make one token of, where a space stands before them.
WORDS = ("time year people way day man thing woman life child world school state family student group country problem hand "
         "part place case week company system program question work number night point home water room mother area money "
         "story fact month lot right study book eye job word business issue side kind head house service friend father power "
         "hour game line end member law car city name team minute idea body back parent face others level office door health "
         "person art war history party result change morning reason research girl guy moment air teacher force education "
         "foot boy age policy process music market sense service area road form event").split()


def mixed(token: int, size: int) -> int:
    """A number below `size` for a token number: always the same for the same one, and as good as drawn at random, so that
    prompts that are to differ do so (SplitMix64's last steps, Steele et al. 2014)."""
    mask = (1 << 64) - 1
    token = (token ^ token >> 30) * 0xBF58476D1CE4E5B9 & mask
    token = (token ^ token >> 27) * 0x94D049BB133111EB & mask
    return (token ^ token >> 31) * size >> 64


def prompt_of(arrival: Arrival, endpoint: str, salt: int = 0) -> dict[str, Any]:
    """The part of the body that says what is asked: token ids for completions, words for chats. Another salt gives another
    prompt of the same length."""
    if endpoint == "completions":
        return {"prompt": [FIRST_ID + mixed(token ^ salt, NUM_IDS) for token in arrival.prompt_token_ids]}
    shared = [token for token in arrival.prompt_token_ids if token < FIRST_PRIVATE]
    own = arrival.prompt_token_ids[len(shared):]
    messages = [{"role": role, "content": " ".join(WORDS[mixed(token ^ salt, len(WORDS))] for token in tokens)}
                for role, tokens in (("system", shared), ("user", own)) if tokens]
    if not own:  # a chat needs a user's message
        messages[-1]["role"] = "user"
    return {"messages": messages}


def requests(arrivals: Iterable[Arrival], endpoint: str, model: str, *, seed: int = 0, ignore_eos: bool = True,
             extra_body: dict[str, Any] | None = None) -> list[Request]:
    """Requests ready to be sent, made beforehand: while the test runs, this program has other things to do.

    endpoint: "completions" or "chat". seed: of what the prompts say, so that a server that has seen the same arrivals before
    does not have them cached. ignore_eos: answers have exactly the length that the arrival says; vLLM, SGLang and
    nanovllm know the field. extra_body: fields that are added to every body, or replace what stands there.
    """
    made, salt = [], Random(seed).getrandbits(64)
    for arrival in arrivals:
        body = prompt_of(arrival, endpoint, salt) | {
            "model": model, "max_tokens": arrival.max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}} | ({"ignore_eos": True} if ignore_eos else {}) | (extra_body or {})
        made.append(Request(arrival.time, json.dumps(body).encode()))
    return made
