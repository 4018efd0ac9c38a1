"""The ingress without Ray: a handle that answers as it is told, and dies where it is told.

(Between real processes: test_ray.py.)
"""

import asyncio
import json
from contextlib import aclosing

import pytest

pytest.importorskip("ray", reason="needs the extra 'fleet'")
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from nanovllm.config import OFFLINE_MODEL
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet import asgi
from nanovllm.fleet.ingress import ATTEMPTS, Ingress
from nanovllm.serving.tokenizer import load_tokenizer

JSON, EVENTS = (b"content-type", b"application/json"), (b"content-type", b"text/event-stream; charset=utf-8")
BODY = json.dumps({"prompt": list(range(20))}).encode()


def answer(*parts, header=JSON):
    """What a replica's application sends. An exception among the parts is raised there; ... waits for ever."""
    return [{"type": "http.response.start", "status": 200, "headers": [header]},
            *(part if part is ... or isinstance(part, Exception) else {"type": "http.response.body", "body": part,
                                                                       "more_body": True} for part in parts)]


class Engines:
    """A DeploymentHandle. calls: what it was asked, and by then: streams, which know whether they were cancelled."""

    def __init__(self, *answers):
        self.answers, self.calls, self.streams = list(answers), [], []

    def options(self, **options):
        assert options == {"stream": True, "method_name": "answer"}
        return self

    def remote(self, *call, hashes):
        self.calls.append((*call, hashes))
        self.streams.append(Stream(self.answers.pop(0)))
        return self.streams[-1]


class Stream:
    def __init__(self, messages):
        self.messages, self.is_cancelled = messages, False

    async def __aiter__(self):
        for message in self.messages:
            if message is ...:
                await asyncio.Event().wait()
            if isinstance(message, Exception):
                raise message
            yield message

    def cancel(self):
        self.is_cancelled = True


def ask(engines, body=BODY):
    return asyncio.run(asgi.request(Ingress(engines, None, 8), "POST", "/v1/completions", headers=[JSON], body=body))


def test_a_request_and_its_answer_are_passed_on_as_they_are():
    engines = Engines(answer(b"one ", b"two"))
    assert ask(engines) == (200, b"one two")
    [(*call, hashes)] = engines.calls
    assert call == ["POST", "/v1/completions", b"", [JSON], BODY] and len(hashes) == 2


def test_another_replica_is_asked_while_nothing_of_the_answer_is_out():
    engines = Engines([RayActorError()], [RayActorError()], answer(b"here"))
    assert ask(engines) == (200, b"here") and len(engines.calls) == 3
    assert len({str(call) for call in engines.calls}) == 1 and all(stream.is_cancelled for stream in engines.streams)


def test_when_all_that_were_asked_died_the_client_is_told():
    engines = Engines(*[[RayActorError()]] * (ATTEMPTS + 1))
    status, body = ask(engines)
    assert status == 503 and f"{ATTEMPTS} replicas" in json.loads(body)["error"]["message"]
    assert len(engines.calls) == ATTEMPTS


def test_a_stream_whose_replica_dies_ends_with_an_error_event():
    engines = Engines(answer(b"data: {}\n\n", RayActorError(), header=EVENTS), answer(b"never"))
    status, body = ask(engines)
    first, error, done, rest = body.decode().split("\n\n")
    assert (status, first, done, rest) == (200, "data: {}", "data: [DONE]", "")
    assert "send the request again" in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert len(engines.calls) == 1


def test_half_an_answer_that_is_no_stream_closes_the_connection():
    async def run():
        unread = [{"type": "http.request", "body": BODY}]
        sent = []

        async def receive():
            return unread.pop() if unread else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        with pytest.raises(RuntimeError, match="in the middle of an answer"):
            await Ingress(Engines(answer(b"{", RayActorError())), None, 8)(scope, receive, send)
        return sent

    assert [message["type"] for message in asyncio.run(run())] == ["http.response.start", "http.response.body"]


def test_full_queues_are_429():
    engines = Engines([BackPressureError(9, 8)])
    status, body = ask(engines)
    assert status == 429 and json.loads(body)["error"]["code"] == "queue_full" and len(engines.calls) == 1


def test_a_client_that_disconnects_ends_its_request_in_the_replica():
    engines = Engines(answer(b"data: {}\n\n", ..., header=EVENTS))

    async def run():
        app = Ingress(engines, None, 8)
        async with aclosing(asgi.messages(app, "POST", "/v1/completions", body=BODY)) as messages:
            async for message in messages:
                if message["type"] == "http.response.body":
                    assert not engines.streams[0].is_cancelled
                    break

    asyncio.run(asyncio.wait_for(run(), 5))
    assert engines.streams[0].is_cancelled


def test_the_router_gets_the_hashes_that_the_engines_make():
    tokenizer = load_tokenizer(OFFLINE_MODEL)
    ingress = Ingress(Engines(), tokenizer, 4)
    text = "Tell me a story about a fox and a hen, please."
    messages = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def hashes(**body):
        return ingress.prompt_hashes(json.dumps(body).encode())

    expected = Sequence(0, tokenizer.encode(text)).block_hashes(4)
    assert len(expected) > 2
    assert hashes(prompt=text) == hashes(prompt=[text, "other"]) == hashes(prompt=tokenizer.encode(text)) == expected
    assert hashes(messages=messages) == Sequence(0, tokenizer.encode(chat)).block_hashes(4)
    for wrong in ({}, {"prompt": None}, {"prompt": [["a"]]}, {"messages": 3}, {"prompt": {}}):
        assert hashes(**wrong) == []
    assert ingress.prompt_hashes(b"{") == ingress.prompt_hashes(b"\xff") == []


def test_it_starts_and_ends_with_the_server_and_speaks_http_only():
    async def run():
        events, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []

        async def receive():
            return events.pop(0)

        async def send(message):
            sent.append(message["type"])

        app = Ingress(Engines(), None, 8)
        await app({"type": "lifespan"}, receive, send)
        with pytest.raises(RuntimeError, match="not websocket"):
            await app({"type": "websocket"}, receive, send)
        return sent

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
