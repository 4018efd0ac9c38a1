"""Engines on Ray in a notebook: chapter 17 asks them and ends one of them. Needs the extra `fleet`."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody but this machine reaches it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from nanovllm.fleet.cluster import connect
from nanovllm.fleet.serve import REPLICA_HEADER, build, start
from nanovllm.server.run import bind

REPLICA = REPLICA_HEADER.decode()


@dataclass(frozen=True)
class Answer:
    """One chat's answer, the replica that gave it, and how many of its prompt's tokens were found cached.

    replica: a letter, in the order in which replicas first answered; Ray's own names are drawn at random.
    """

    status: int
    text: str
    replica: str
    prompt: int
    cached: int


class RayFleet:
    """Replicas of the offline model behind one address on this machine; `close` ends them and Ray."""

    def __init__(self, replicas: int):
        logging.disable(logging.WARNING)  # what Ray tells of its own affairs
        connect(num_cpus=replicas, attempts=1)
        with bind("127.0.0.1", 0) as listener:
            self._port = listener.getsockname()[1]
        application = build(replicas=replicas, num_cpus=0.5, num_kvcache_blocks=256)
        self.address = start(application, port=self._port)
        self._letters: dict[str | None, str] = {}

    def _letter(self, replica: str | None) -> str:
        return self._letters.setdefault(replica, chr(ord("A") + len(self._letters)))

    @contextmanager
    def _post(self, path: str, body: dict) -> Iterator[HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", f"/v1/{path}", json.dumps(body), {"Content-Type": "application/json"})
            yield connection.getresponse()
        finally:
            connection.close()

    def chat(self, system: str, question: str) -> Answer:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        with self._post("chat/completions", {"messages": messages, "max_tokens": 12, "temperature": 0}) as response:
            answer = json.load(response)
            usage = answer["usage"]
            return Answer(response.status, answer["choices"][0]["message"]["content"], self._letter(response.headers[REPLICA]),
                          usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])

    def stream_and_kill(self, prompt: str, tokens: int) -> list[str]:
        """The events of a stream whose replica is ended after ten of them."""
        body = {"prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0, "stream": True}
        events = []
        with self._post("completions", body) as response:
            for line in filter(None, map(bytes.strip, response)):
                events.append(line.decode().removeprefix("data: "))
                if len(events) == 10:
                    ray.kill(ray.get_actor(f"SERVE_REPLICA::nanovllm#Engine#{response.headers[REPLICA]}", namespace="serve"))
        return events

    def close(self) -> None:
        ray.shutdown()
        logging.disable(logging.NOTSET)
