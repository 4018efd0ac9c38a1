"""Answers with a shape over HTTP: what is served, what is refused by which name, and that nobody waits for a refusal."""

import json
import threading
import time

import jsonschema
import pytest
from openai import BadRequestError

from nanovllm import LLM
from tests.server.conftest import http, running_server

MESSAGES = [{"role": "user", "content": "What do you know of the fox?"}]
CARD = {"type": "object", "additionalProperties": False, "required": ["name", "age"], "properties": {
    "name": {"enum": ["fox", "hen", "cat"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}}}
AS_CARD = {"type": "json_schema", "json_schema": {"name": "card", "schema": CARD, "strict": True}}


@pytest.fixture(scope="module")
def server():
    with LLM(device="cpu", num_kvcache_blocks=600) as llm, running_server(llm) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays_behind(server):
    yield
    server.wait_until_idle()


def chat(server, **options):
    return server.client().chat.completions.create(model="offline", messages=MESSAGES, **{"max_tokens": 120} | options)


def post(server, path, **body):
    return http.post(f"{server.url}/v1/{path}", json=body)


@pytest.mark.parametrize("options", [dict(temperature=0), dict(temperature=1, seed=2, n=3), dict(temperature=1, logprobs=True)])
def test_a_chat_answers_by_its_schema(server, options):
    answer = chat(server, response_format=AS_CARD, **options)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), CARD)


def test_a_streamed_answer_has_its_shape_too(server):
    chunks = list(chat(server, response_format=AS_CARD, stream=True, temperature=0))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    jsonschema.validate(json.loads(text), CARD)
    assert chunks[-1].choices[0].finish_reason == "stop" and len(chunks) > 4


def test_json_object_text_and_null(server):
    text = chat(server, response_format={"type": "json_object"}, temperature=0, max_tokens=25).choices[0].message.content
    assert text.startswith("{")
    plainly = chat(server, temperature=0, max_tokens=8).choices[0].message.content
    for same in ({"response_format": {"type": "text"}}, {"response_format": {"type": "text", "json_schema": None}},
                 {"extra_body": {"structured_outputs": {}}}, {"extra_body": {"structured_outputs": {"json": None}}},
                 {"extra_body": {"structured_outputs": {"json_object": False, "backend": "auto"}}}):
        assert chat(server, temperature=0, max_tokens=8, **same).choices[0].message.content == plainly


@pytest.mark.parametrize(("shape", "fits"), [
    ({"choice": ["yes", "no"]}, {"yes", "no"}.__contains__), ({"regex": "[0-9]{3}"}, str.isdecimal),
    ({"json": json.dumps(CARD)}, lambda text: jsonschema.validate(json.loads(text), CARD) is None),
    ({"grammar": 'start: "<" ("a" | "b") ">"'}, {"<a>", "<b>"}.__contains__)])
def test_completions_and_chats_take_structured_outputs(server, shape, fits):
    answer = post(server, "completions", prompt="Say: ", max_tokens=120, structured_outputs=shape).json()
    message = chat(server, extra_body={"structured_outputs": shape}).choices[0].message
    for text in (answer["choices"][0]["text"], message.content):
        assert fits(text), text


@pytest.mark.parametrize(("field", "body", "words"), [
    ("response_format.type", {"response_format": {}}, "'json_schema'"),
    ("response_format.type", {"response_format": {"type": "structural_tag"}}, "'json_schema'"),
    ("response_format", {"response_format": {"type": "json_object", "schema": CARD}}, "leave 'schema' out"),
    ("response_format.json_schema", {"response_format": {"type": "json_schema"}}, "a name and a schema"),
    ("response_format.json_schema.schema",
     {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "object"),
    ("response_format.json_schema.strict",
     {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": 1}}}, "a bool"),
    ("response_format.json_schema.schema",
     {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "not": {}}}}}, "Unimplemented"),
    ("response_format.json_schema.schema",
     {"response_format": {"type": "json_schema", "json_schema": {"schema": {"minimum": 5, "maximum": 2, "type": "integer"}}}},
     "minimum (5) is greater"),
    ("response_format.json_schema.schema",
     {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {f"p{i}": {} for i in range(401)}}}}},
     "at most 400"),
    ("response_format.json_schema.schema",
     {"response_format": {"type": "json_schema", "json_schema": {"schema": {"multipleOf": 999983}}}}, "at most 20000"),
    ("structured_outputs", {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "exactly one of"),
    ("structured_outputs", {"structured_outputs": {"choice": ["a"]}, "response_format": AS_CARD}, "one of the two"),
    ("structured_outputs.regex", {"structured_outputs": {"regex": "(a"}}, "unclosed group"),
    ("structured_outputs.regex", {"structured_outputs": {"regex": ".*" * 500}}, "limits"),
    ("structured_outputs.choice", {"structured_outputs": {"choice": "a"}}, "a list"),
    ("structured_outputs.json", {"structured_outputs": {"json": "{"}}, "must be JSON"),
    ("structured_outputs.json", {"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}}, "Unimplemented"),
    ("structured_outputs.grammar", {"structured_outputs": {"grammar": "start: x"}}, "unknown name"),
    ("structured_outputs.structural_tag", {"structured_outputs": {"structural_tag": "x"}}, "write it as a grammar"),
    ("structured_outputs", {"structured_outputs": "json"}, "dictionary"),
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_what_cannot_be_served_is_refused_by_its_own_name(server, path, field, body, words):
    prompt = {"prompt": "Hello"} if path == "completions" else {"messages": MESSAGES}
    answer = post(server, path, **prompt, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert words in error["message"] and len(error["message"]) < 700


def test_the_client_of_openai_reads_the_refusal(server):
    with pytest.raises(BadRequestError, match="Unimplemented keys"):
        chat(server, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}})


def test_nobody_waits_for_shapes_that_are_costly_to_compile(server):
    """The event loop answers others while grammars are compiled by other threads."""
    statuses, longest = [], [0.0]

    def ask_for_the_costly():
        for i in range(3):
            properties = {f"p{i}_{j}": {} for j in range(1990)}
            schema = {"type": "object", "properties": properties, "required": list(properties)[:1700]}
            answer = post(server, "completions", prompt="x", max_tokens=2, structured_outputs={"json": schema})
            statuses.append(answer.status_code)

    thread = threading.Thread(target=ask_for_the_costly)
    thread.start()
    while thread.is_alive():
        before = time.perf_counter()
        assert http.get(f"{server.url}/health").status_code == 200
        longest.append(time.perf_counter() - before)
        time.sleep(0.01)
    assert statuses == [200] * 3 and len(longest) > 5 and max(longest) < 1
