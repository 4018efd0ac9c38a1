"""What a server refuses, and how: the status, the field, and the official client's own exceptions."""

import json

import httpx
import openai
import pytest

from .conftest import running_server

MESSAGES = [{"role": "user", "content": "Hello"}]


def post(server, path, **request):
    if "json" in request:  # Python's own encoder, which escapes even what is no text
        request |= {"content": json.dumps(request.pop("json"))}
    reply = httpx.post(f"{server.url}/v1/{path}", **{"headers": {"Content-Type": "application/json"}} | request)
    return reply.status_code, reply.json()["error"]


@pytest.mark.parametrize("field, value, says", [
    ("temperature", -1, "0 or more"), ("temperature", "hot", "number"), ("max_tokens", 0, "1 or more"),
    ("max_tokens", 1.5, "integer"), ("top_p", 0, r"(0, 1]"), ("n", 0, "1 or more"), ("seed", -1, "2**63"),
    ("presence_penalty", 3, "[-2, 2]"), ("stop", [1], "a list of texts"), ("logprobs", 21, "0 to 20"),
    ("logit_bias", {"x": 1}, "token ids as keys"), ("logit_bias", {"999999": 1}, "vocabulary"),
    ("stop_token_ids", [-1], "vocabulary"), ("stream", "yes", "boolean"), ("stream_options", {"include_usage": True}, "stream"),
    ("echo", True, "does not offer it"), ("best_of", 2, "does not offer it"), ("suffix", "x", "does not offer it"),
    ("prompt", "", "at least one character"), ("prompt", [], "none of them empty"), ("prompt", {"a": 1}, "a text"),
    ("prompt", ["a", [1]], "a list of texts"), ("prompt", [[]], "none of them empty"), ("prompt", [999999], "vocabulary"),
    ("prompt", [True], "a text"), ("prompt", None, "a text"), ("prompt", "word " * 5000, "max_model_len"),
    ("prompt", "half \ud800 a pair", "a text"), ("temprature", 1, "unknown field"), ("top_k", -2, "-1 or more"),
])
def test_a_bad_field_of_a_completion_is_named(server, field, value, says):
    body = {"model": "offline", "prompt": "Hello", "max_tokens": 2} | {field: value}
    status, error = post(server, "completions", json=body)
    assert (status, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert says in error["message"]


@pytest.mark.parametrize("field, value, says", [
    ("messages", [], "role"), ("messages", "Hello", "list"), ("messages.0.role", [{"role": "tool", "content": "x"}], "'user'"),
    ("messages.0.content", [{"role": "user", "content": 5}], "a text"), ("messages.0.content", [{"role": "user"}], "required"),
    ("messages.0.content", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "type 'text'"),
    ("tools", [{"type": "function"}], "does not offer it"), ("response_format", {"type": "json_object"}, "does not offer it"),
    ("top_logprobs", 2, "set logprobs"), ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}, "leave it out"),
    ("chat_template_kwargs", {"tokenize": True}, "leave it out"),
    ("messages", [{"role": "user", "content": "word " * 5000}], "max_model_len"),
])
def test_a_bad_field_of_a_chat_is_named(server, field, value, says):
    body = {"messages": MESSAGES, "max_tokens": 2} | {field.split(".")[0]: value}
    status, error = post(server, "chat/completions", json=body)
    assert (status, error["param"]) == (400, field)
    assert says in error["message"]


def test_a_body_that_is_no_json_object(server):
    for content, says in ((b"{", "not valid JSON"), (b"", "required"), (b"[1]", "body"), (b"\xff", "parsing"),
                          (b"[" * 10**5, "parsing")):
        status, error = post(server, "completions", content=content)
        assert status == 400 and says in error["message"], (content[:10], error)


def test_the_clients_own_exceptions(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="offline", prompt="Hello", temperature=-1)
    assert caught.value.param == "temperature" and "temperature=-1" in str(caught.value)
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert caught.value.code == "model_not_found" and "'offline'" in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="offline", input="Hello")


def test_neutral_values_of_what_is_not_offered_are_taken(client):
    client.completions.create(model="offline", prompt="Hello", max_tokens=1, echo=False, best_of=1, suffix="", user="me")
    client.chat.completions.create(model="offline", messages=MESSAGES, max_tokens=1, tools=[], response_format={"type": "text"},
                                   metadata={"a": "b"}, store=False, temperature=None)


def test_no_room_in_the_queue_is_429(llm, gate):
    with running_server(llm, max_queued=2) as server, server.client() as client:
        with pytest.raises(openai.BadRequestError, match="at most 2, prompts times n"):
            client.completions.create(model="offline", prompt=["a", "b", "c"])
        streams = [client.completions.create(model="offline", prompt="Hello", max_tokens=2, stream=True) for _ in range(2)]
        for how in ({}, {"stream": True}):
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(model="offline", prompt="Hello", **how)
            assert caught.value.response.headers["retry-after"] == "1" and "max_queued=2" in str(caught.value)
        gate.open()
        assert [len(list(stream)) > 0 for stream in streams] == [True, True]
        assert client.completions.create(model="offline", prompt="Hello", max_tokens=2).choices[0].finish_reason


def test_two_prompts_are_both_queued_or_neither(llm, gate):
    with running_server(llm, max_queued=2) as server, server.client() as client:
        stream = client.completions.create(model="offline", prompt="Hello", max_tokens=2, stream=True)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="offline", prompt=["a", "b"])
        gate.open()
        list(stream)
        server.wait_until_idle()


def test_the_key(llm):
    with running_server(llm, api_key="sesame") as server:
        with server.client(api_key="sesame") as client:
            assert client.models.list().data[0].id == "offline"
        for wrong in (None, "sesame", "Bearer sesam", "Bearer Sesame", "Bearer sésame"):
            reply = httpx.get(f"{server.url}/v1/models", headers={} if wrong is None else {"Authorization": wrong.encode()})
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        with server.client(api_key="guess") as client, pytest.raises(openai.AuthenticationError, match="API key"):
            client.completions.create(model="offline", prompt="Hello")
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer séসame".encode()}).status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_body_that_is_too_large_is_413(llm):
    def pieces():
        for _ in range(10):
            yield b" " * 300

    with running_server(llm, max_body_bytes=1000) as server:
        for content in (b" " * 1001, pieces()):  # announced, and not
            status, error = post(server, "completions", content=content)
            assert status == 413 and "may have 1000" in error["message"]
        with server.client() as client:
            assert client.completions.create(model="offline", prompt="Hello", max_tokens=1).usage.completion_tokens == 1
