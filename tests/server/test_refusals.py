"""What a server refuses, and how: the status, the field, and the official client's own exceptions."""

import json
import time

import openai
import pytest

from .conftest import http, running_server

MESSAGES = [{"role": "user", "content": "Hello"}]


def post(server, path, **request):
    if "json" in request:  # Python's own encoder, which escapes even what is no text
        request |= {"content": json.dumps(request.pop("json"))}
    reply = http.post(f"{server.url}/v1/{path}", **{"headers": {"Content-Type": "application/json"}} | request)
    return reply.status_code, reply.json()["error"]


@pytest.mark.parametrize("field, value, says", [
    ("temperature", -1, "1e+06"), ("temperature", "hot", "number"), ("max_tokens", 0, "1 or more"),
    ("max_tokens", 1.5, "integer"), ("top_p", 0, r"(0, 1]"), ("n", 0, "1 or more"), ("seed", -2, "2**63"),
    ("presence_penalty", 3, "[-2, 2]"), ("stop", [1], "a list of texts"), ("logprobs", 21, "0 to 20"),
    ("logit_bias", {"x": 1}, "token ids as keys"), ("logit_bias", {"999999": 1}, "vocabulary"),
    ("stop_token_ids", [-1], "vocabulary"), ("stream", "yes", "boolean"), ("stream_options", {"include_usage": True}, "stream"),
    ("best_of", 2, "does not offer it"), ("suffix", "x", "does not offer it"),
    ("prompt", "", "at least one character"), ("prompt", [], "none of them empty"), ("prompt", {"a": 1}, "a text"),
    ("prompt", ["a", [1]], "a list of texts"), ("prompt", [[]], "none of them empty"), ("prompt", [999999], "vocabulary"),
    ("prompt", [True], "a text"), ("prompt", None, "a text"), ("prompt", "word " * 5000, "max_model_len"),
    ("prompt", "half \ud800 a pair", "a text"), ("temprature", 1, "unknown field"), ("top_k", -2, "2**31"),
    ("top_k", 2**63, "2**31"), ("top_k", 10**30, "2**31"), ("seed", 2**63, "2**63"), ("seed", True, "integer"),
    ("max_tokens", 10**12, "the room that a prompt of"), ("max_tokens", 2048, "the room that a prompt of"),
    ("min_tokens", 3, "max_tokens=2"), ("n", 10**9, "16384 at most"), ("n", 1025, "at most 1024"),
    ("priority", 101, "[-100, 100]"),
    ("stop", ["x"] * 65, "at most 64"), ("stop", ["x" * 100] * 41, "at most 4096"), ("stop", "x" * 5000, "at most 4096"),
    ("stop_token_ids", [1] * 1025, "at most 1024"), ("logit_bias", {str(i): 1 for i in range(1025)}, "at most 1024"),
    ("prompt", "x" * 300000, "300000 characters"), ("prompt", ["Hello", "x" * 300000], "300000 characters"),
    ("truncate_prompt_tokens", 0, "-1 or from 1"), ("truncate_prompt_tokens", -2, "greater than or equal to -1"),
    ("truncate_prompt_tokens", 10**20, "-1 or from 1"), ("request_id", "a b", "pattern"), ("request_id", "", "at least 1"),
    ("use_beam_search", True, "does not offer it"), ("length_penalty", 1.5, "does not offer it"),
    ("structured_outputs", {"regx": "a"}, "leave 'regx' out"),
    ("prompt_logprobs", 21, "0 to 20"), ("prompt_logprobs", -1, "0 to 20"), ("guided_json", {}, "unknown field"),
])
def test_a_bad_field_of_a_completion_is_named(server, field, value, says):
    body = {"model": "offline", "prompt": "Hello", "max_tokens": 2} | {field: value}
    status, error = post(server, "completions", json=body)
    assert (status, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert says in error["message"] and len(error["message"]) < 700


@pytest.mark.parametrize("field, value, says", [
    ("messages", [], "role"), ("messages", "Hello", "list"), ("messages.0.role", [{"role": "x", "content": "x"}], "'user'"),
    ("messages.0.content", [{"role": "user", "content": 5}], "a text"), ("messages.0.content", [{"role": "user"}], "required"),
    ("messages.0.content", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "type 'text'"),
    ("tools.0.function", [{"type": "function"}], "required"), ("response_format.type", {"type": "xml"}, "'json_schema'"),
    ("top_logprobs", 2, "set logprobs"), ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}, "leave it out"),
    ("chat_template_kwargs", {"tokenize": True}, "leave it out"),
    ("messages", [{"role": "user", "content": "word " * 5000}], "max_model_len"),
    ("messages", [{"role": "user", "content": "1" * 40000}], "characters"),
    ("chat_template_kwargs", {"messages": []}, "leave it out"), ("chat_template_kwargs", {"conversation": 1}, "leave it out"),
    ("chat_template_kwargs", {"self": 1}, "leave it out"),
    ("chat_template_kwargs", {"add_generation_prompt": False}, "leave it out"),
    ("max_completion_tokens", 0, "max_completion_tokens=0"),
    ("max_completion_tokens", 10**12, "max_completion_tokens=1000000000000"),
    ("min_tokens", 2040, "max_tokens"), ("messages.0.foo", [{"role": "user", "content": "x", "foo": "bar"}], "unknown field"),
    ("messages.1.audio", [*MESSAGES, {"role": "assistant", "content": "x", "audio": {"id": "x"}}], "does not offer it"),
    ("reasoning_effort", "hard", "'high'"), ("add_generation_prompt", "no", "boolean"),
    ("stream_options.x", {"x": 1}, "unknown field"),
    ("include_reasoning", "no", "boolean"), ("parallel_tool_calls", 1, "boolean"),
])
def test_a_bad_field_of_a_chat_is_named(server, field, value, says):
    body = {"messages": MESSAGES, "max_tokens": 2} | {field.split(".")[0]: value}
    status, error = post(server, "chat/completions", json=body)
    assert (status, error["param"]) == (400, field)
    assert says in error["message"]


def test_a_promise_of_tokens_is_kept_or_refused(server):
    """The room is max_model_len less the prompt: what fits into it is generated, one token more is refused."""
    ids = list(range(3, 13))
    body = {"prompt": ids, "max_tokens": 2038, "min_tokens": 2038, "stream": True, "temperature": 0}
    for over in ({"max_tokens": 2039, "min_tokens": 1}, {"max_tokens": 2039, "min_tokens": 2039}):
        status, error = post(server, "completions", json=body | over)
        assert status == 400 and "at most 2038, the room that a prompt of 10 tokens leaves" in error["message"]
    status, error = post(server, "chat/completions", json={"messages": MESSAGES, "min_tokens": 2047})
    assert (status, error["param"]) == (400, "min_tokens") and "room" in error["message"]
    status, error = post(server, "completions", json={"prompt": [ids, ids * 200], "max_tokens": 100})
    assert (status, error["param"]) == (400, "max_tokens") and "of 2000 tokens" in error["message"]  # the longer one decides
    reply = http.post(f"{server.url}/v1/completions", json={"prompt": [ids, ids * 204], "temperature": 0, "ignore_eos": True})
    assert reply.json()["usage"]["completion_tokens"] == 16 + 8  # a default is no promise: it is cut to each prompt's room


def test_what_a_client_sent_comes_back_short(server):
    """Names, values and fields of any length, and such as are no text."""
    long, chat = "x" * 100_000, "chat/completions"
    for path, body in (("completions", {"model": long, "prompt": "a"}), (chat, {"model": long, "messages": MESSAGES}),
                       ("completions", {"prompt": "a", long: 1}), ("completions", {"prompt": "a", "stop": [long]}),
                       ("completions", {"prompt": "a", "logit_bias": {long: 1}}),
                       ("completions", {"prompt": "a", "top_k": long}),
                       (chat, {"messages": MESSAGES, "chat_template_kwargs": {"tokenize": long}}),
                       (chat, {"messages": [{"role": long, "content": "a"}]}),
                       ("completions", {"model": "\ud800", "prompt": "a"}), ("completions", {"prompt": "a", "\ud800": 1}),
                       ("completions", {"prompt": "a", "user": "\ud800"}), ("completions", {"prompt": [10**4000]}),
                       (chat, {"messages": MESSAGES, "chat_template_kwargs": {"\ud800": "\ud800"}})):
        reply = http.post(f"{server.url}/v1/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})
        harmless = body.get("user") or "\ud800" in body.get("chat_template_kwargs", {})
        assert reply.status_code in (400, 404) or (harmless and reply.status_code == 200), reply.text[:300]
        assert len(reply.content) < 2000, reply.text[:300]
    reply = http.get(f"{server.url}/v1/models/{long[:50_000]}")  # uvicorn takes heads of up to 64 kB
    assert reply.status_code in (400, 404) and len(reply.content) < 2000


def test_a_template_that_refuses_is_400_with_its_words(server, monkeypatch):
    def refusing(template):
        monkeypatch.setattr(server.llm.tokenizer, "chat_template", template)
        return post(server, "chat/completions", json={"messages": MESSAGES, "max_tokens": 1})

    for template, says in (("{{ raise_exception('Only user and assistant') }}", "Only user and assistant"),
                           ("{{ nothing.there }}", "nothing"), ("{{ messages[0] + 1 }}", "dict"),
                           ("{{ 1 / 0 }}", "zero"), ("{{ messages.__class__.__mro__ }}", "unsafe")):
        status, error = refusing(template)
        assert (status, error["param"]) == (400, "messages") and says in error["message"], error
    status, error = refusing("")
    assert status == 400


def test_a_body_without_its_type_is_told_which(server):
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"},
                    {"Content-Type": "nonsense"}):
        status, error = post(server, "completions", content=body, headers=headers)
        assert status == 415 and error["message"].startswith("Content-Type=") and "application/json" in error["message"]
    for good in ("application/json; charset=utf-8", "application/vnd.api+json"):
        assert http.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": good}).status_code == 200


def test_deep_and_odd_bodies(server):
    def nested(depth):
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "chat_template_kwargs": {"x": "deep"}}
        return json.dumps(body).replace('"deep"', "[" * depth + "]" * depth)

    for depth in (10, 300, 900, 5000, 100_000):
        reply = http.post(f"{server.url}/v1/chat/completions", content=nested(depth),
                           headers={"Content-Type": "application/json"})
        assert reply.status_code == 200 if depth == 10 else reply.status_code in (200, 400), (depth, reply.text[:200])
    for body in ('{"prompt": "a", "temperature": NaN}', '{"prompt": "a", "temperature": 1e999}', '{"prompt": "a", "n": 1e400}',
                 '{"prompt": "a", "logit_bias": {"1": Infinity}}', '{"prompt": "a", "seed": 1' + "0" * 5000 + "}",
                 '{"prompt": "a", "stop": {}}', '{"prompt": "a", "stop": 0.5}', '{"prompt": "a", "stream_options": []}',
                 '"text"', "null", "12", "[]", '{"prompt": null}', "{}", '{"prompt": "a", "prompt": 5}'):
        status, error = post(server, "completions", content=body)
        assert status == 400 and error["message"], body


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
            reply = http.get(f"{server.url}/v1/models", headers={} if wrong is None else {"Authorization": wrong.encode()})
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        with server.client(api_key="guess") as client, pytest.raises(openai.AuthenticationError, match="API key"):
            client.completions.create(model="offline", prompt="Hello")
        assert http.get(f"{server.url}/metrics").status_code == 401
        assert http.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer séসame".encode()}).status_code == 401
        assert http.get(f"{server.url}/health").status_code == 200


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


@pytest.mark.unmeasured
@pytest.mark.parametrize("path, body", [
    ("chat/completions", {"messages": [{}] * 1_000_000}), ("chat/completions", {"messages": [1] * 1_500_000}),
    ("chat/completions", {"messages": [{"role": "user", "content": 1}] * 80_000}),
    ("chat/completions", {"messages": [{"role": "user", "content": [{}] * 1_000_000}]}),
    ("completions", {"prompt": "a"} | {str(i): 1 for i in range(300_000)}), ("completions", {"prompt": ["a"] * 700_000}),
    ("completions", {"prompt": [[]] * 900_000}), ("completions", {"prompt": [1] * 1_300_000 + ["a"]}),
    ("completions", {"prompt": "a", "stop": ["a"] * 700_000}),
    ("completions", {"prompt": "a", "stop_token_ids": ["a"] * 700_000}),
    ("completions", {"prompt": "a", "metadata": {str(i): 1 for i in range(300_000)}}),
    ("completions", {"prompt": "a", "logit_bias": {str(i): "x" for i in range(200_000)}}),
    ("completions", {"prompt": "a", "stream_options": {str(i): 1 for i in range(300_000)}}),
    ("../detokenize", {"tokens": ["a"] * 700_000}), ("../detokenize", {"tokens": [10**9] * 300_000}),
])
def test_a_million_mistakes_are_refused_as_fast_as_one(server, path, body):
    content = json.dumps(body, separators=(",", ":"))
    assert len(content) < 4 * 2**20
    began = time.monotonic()
    status, error = post(server, path, content=content)
    assert status == 400 and len(error["message"]) < 700
    assert time.monotonic() - began < 10  # most take 0.3, reading 900,000 lists 3; a million complaints took 23, and 2 GB
