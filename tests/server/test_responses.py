"""/v1/responses as the official client drives it: text, events, calls, thoughts, conversations that go on."""

import json
from typing import Annotated, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from nanovllm.server.response_store import ResponseStore

from .conftest import http, running_server
from .test_tool_calls import call

GREEDY = dict(model="offline", temperature=0)
WEATHER = {"type": "function", "name": "get_weather", "strict": None, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
TEXT_EVENTS = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
               "response.output_text.delta", "response.output_text.done", "response.content_part.done",
               "response.output_item.done"]


@pytest.fixture
def ask(client):
    def ask(input="Tell me about a hen.", **fields):
        beyond = {name: fields.pop(name) for name in ("seed", "chat_template_kwargs", "stop") if name in fields}
        return client.responses.create(model="offline", input=input, extra_body=beyond, **fields)
    return ask


def once_each(names: list[str]) -> list[str]:
    """The names without those that repeat the one before."""
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def test_text(client, llm):
    said = client.responses.create(input="Tell me about a hen.", max_output_tokens=2000, metadata={"a": "b"}, **GREEDY)
    chat = client.chat.completions.create(messages=[{"role": "user", "content": "Tell me about a hen."}], **GREEDY)
    assert said.output_text == chat.choices[0].message.content and said.status == "completed" and said.error is None
    item, = said.output
    assert (item.type, item.role, item.status, len(item.content)) == ("message", "assistant", "completed", 1)
    assert item.id.startswith("msg_") and said.id.startswith("resp_") and said.object == "response"
    assert (said.usage.input_tokens, said.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert (said.temperature, said.tool_choice, said.tools, said.metadata) == (0, "auto", [], {"a": "b"})


def test_what_max_output_tokens_cuts_off_is_incomplete(ask):
    said = ask(max_output_tokens=5)
    assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert said.output[0].status == "incomplete" and said.usage.output_tokens == 5
    *_, last = ask(max_output_tokens=5, stream=True)
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")


def test_the_events_of_a_text(ask):
    story = "Tell me a story about a hen."
    whole = ask(story, temperature=0, max_output_tokens=400)
    events = list(ask(story, temperature=0, max_output_tokens=400, stream=True))
    assert once_each([event.type for event in events]) == [*TEXT_EVENTS, "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 10 and "".join(deltas) == whole.output_text
    last = events[-1].response
    assert last.output_text == whole.output_text and last.usage.output_tokens == whole.usage.output_tokens
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}
    assert events[0].response.output == [] and events[0].response.status == "in_progress"


def test_events_on_the_wire_have_names_and_no_done(server):
    reply = http.post(f"{server.url}/v1/responses", json={"input": "Hi", "max_output_tokens": 3, "stream": True})
    *events, end = reply.text.split("\n\n")
    assert end == "" and "[DONE]" not in reply.text
    for event in events:
        name, data = event.split("\n")
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]


def test_the_clients_own_stream_helper(client, replay):
    with client.responses.stream(model="offline", input="Rain?", tools=[WEATHER],
                                 extra_body={"seed": replay.seed("Hm. " + call(city="Paris"))}) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == '{"city": "Paris"}' and len(snapshots) > 2
    assert [item.type for item in final.output] == ["message", "function_call"]
    assert final.output[1].arguments == '{"city": "Paris"}'


@pytest.mark.parametrize("stream", [False, True])
def test_calls_thoughts_and_text_are_items(ask, replay, stream):
    seed = replay.seed(f"Hm.\n</think>\n\nLook: {call(city='Paris')}\n{call(city='Rome')} Done.")
    said = ask(seed=seed, tools=[WEATHER], chat_template_kwargs={"enable_thinking": True}, stream=stream)
    if stream:
        events = list(said)
        said = events[-1].response
        assert [event.sequence_number for event in events] == list(range(len(events)))
        names = once_each([event.type.removeprefix("response.") for event in events])
        text = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
                "output_item.done"]
        calls = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
        thoughts = [name.replace("output_text", "reasoning_text") for name in text]
        assert names == ["created", "in_progress", *thoughts, *text, *calls, *calls, *text, "completed"]
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.model_dump() for item in done] == [item.model_dump() for item in said.output]
        assert [event.output_index for event in events if event.type == "response.output_item.added"] == [0, 1, 2, 3, 4]
    assert [item.type for item in said.output] == ["reasoning", "message", "function_call", "function_call", "message"]
    thought, text, first, second, rest = said.output
    assert (thought.content[0].text, thought.summary, text.content[0].text) == ("Hm.", [], "Look:")
    assert [(each.name, each.arguments, each.status) for each in (first, second)] == [
        ("get_weather", '{"city": "Paris"}', "completed"), ("get_weather", '{"city": "Rome"}', "completed")]
    assert first.call_id != second.call_id and rest.content[0].text == "Done." and said.output_text == "Look:Done."
    assert said.usage.output_tokens_details.reasoning_tokens > 2


def prompt_of(server, monkeypatch):
    """What the next request's prompt is, as text."""
    seen, submit = [], type(server.server._llm).submit
    monkeypatch.setattr(type(server.server._llm), "submit", lambda llm, tokens, *args, **kw: (
        seen.append(server.llm.tokenizer.decode(tokens)), submit(llm, tokens, *args, **kw))[1])
    return seen


def test_a_conversation_goes_on_by_id_and_by_items(ask, server, replay, monkeypatch):
    prompts = prompt_of(server, monkeypatch)
    question = "What is the weather in Paris?"
    first = ask(question, tools=[WEATHER], instructions="Be brief.", seed=replay.seed("Wait. " + call(city="Paris")))
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "sunny"}
    second = ask([result], tools=[WEATHER], previous_response_id=first.id, seed=replay.seed("It is sunny."))
    by_items = [{"role": "user", "content": [{"type": "input_text", "text": question}]}, *first.output, result]
    third = ask(by_items, tools=[WEATHER], seed=replay.seed("It is sunny."), store=False)
    assert second.output_text == third.output_text == "It is sunny." and second.previous_response_id == first.id
    assert "Be brief." in prompts[0] and "Be brief." not in prompts[1]
    assert prompts[1] == prompts[2] and f"Wait.\n{call(city='Paris')}" in prompts[1]
    assert "<tool_response>\nsunny\n</tool_response>" in prompts[1]
    last = ask("Thanks.", previous_response_id=second.id, max_output_tokens=3)
    assert "It is sunny.<|im_end|>\n<|im_start|>user\nThanks." in prompts[3] and last.usage.input_tokens > 50


def test_stored_responses_can_be_read_and_forgotten(client, ask):
    said, unsaid = ask(max_output_tokens=3), ask(max_output_tokens=3, store=False)
    assert client.responses.retrieve(said.id).model_dump() == said.model_dump()
    *_, last = ask(max_output_tokens=3, stream=True)
    assert client.responses.retrieve(last.response.id).output_text == last.response.output_text
    client.responses.delete(said.id)
    for lost in (said.id, unsaid.id, "resp_never"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(lost)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(lost)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(previous_response_id=lost)
        assert caught.value.param == "previous_response_id" and "whole conversation" in str(caught.value)


def test_the_store_is_bounded(monkeypatch):
    class Said:
        def __init__(self, text):
            self.text = text

        def model_dump_json(self):
            return self.text

    store = ResponseStore(3)
    for i in range(10):
        store.put({"id": str(i)}, [Said("x" * 10)])
    assert len(store) == 3 and store.get("7") and store.get("6") is None
    monkeypatch.setattr("nanovllm.server.response_store.MAX_CHARACTERS", 25)
    store.put({"id": "a"}, [Said("x" * 15)])
    assert len(store) == 2 and store.get("9") and store.get("a")
    store.put({"id": "b"}, [Said("x" * 26)])
    assert len(store) == 0
    ResponseStore(0).put({"id": "c"}, [])


def test_a_server_that_stores_nothing(llm):
    with running_server(llm, max_stored_responses=0) as server, server.client() as client:
        said = client.responses.create(model="offline", input="Hi", max_output_tokens=2)
        with pytest.raises(openai.BadRequestError, match="stores none"):
            client.responses.create(model="offline", input="Hi", previous_response_id=said.id)
        assert said.model_extra["store"] is False


def test_effort_turns_thinking_on(ask, replay):
    seed = replay.seed("Hm.</think>Yes.")
    said = ask(seed=seed, reasoning={"effort": "low", "summary": "auto"})
    assert said.output[0].type == "reasoning" and said.output_text == "Yes." and said.reasoning.effort == "low"
    assert ask(seed=seed, reasoning={"effort": "none"}).output_text == "Hm.</think>Yes."


def test_a_step_that_fails_ends_the_stream_with_an_event(ask, server, monkeypatch):
    stream = ask(max_output_tokens=2000, stream=True)
    events = [next(stream) for _ in range(5)]
    monkeypatch.setattr(server.llm.engine, "step", lambda: 1 / 0)
    events += list(stream)
    assert events[-1].type == "response.failed" and "division by zero" in events[-1].response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("fields, param, says", [
    ({"input": []}, "input", "not empty"), ({"input": 5}, "input", "list of items"),
    ({"input": [{"role": "user"}]}, "input", "item 0, content: Field required"),
    ({"input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": "x"}]}, "input", "item 1 must be of type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "input_text"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": 5}]}, "input", "arguments"),
    ({"input": [{"role": "user", "content": "x", "foo": 1}]}, "input", "unknown field"),
    ({"max_output_tokens": 0}, "max_output_tokens", "1 or more"), ({"max_output_tokens": 10**9}, "max_output_tokens", "room"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
    ({"tools": [{"type": "function"}]}, "tools.0.name", "required"),
    ({"tool_choice": "any"}, "tool_choice", "none, auto, required"),
    ({"tool_choice": "required"}, "tool_choice", "without tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "one of the tools"),
    ({"background": True}, "background", "does not offer"), ({"conversation": "x"}, "conversation", "does not offer"),
    ({"truncation": "auto"}, "truncation", "does not offer"), ({"top_logprobs": 2}, "top_logprobs", "does not offer"),
    ({"include": ["message.output_text.logprobs"]}, "include", "not offered"),
    ({"prompt": {"id": "x"}}, "prompt", "does not offer"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "does not offer"), ({"n": 2}, "n", "unknown field"),
    ({"reasoning": {"effort": "hard"}}, "reasoning.effort", "'high'"), ({"temperature": -1}, "temperature", "1e+06"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "must be a JSON schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format.schema", "Unimplemented keys"),
    ({"text": {"format": {"type": "json_schema", "schema": {"multipleOf": 10**9}}}}, "text.format.schema", "at most 20000"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", ""),
])
def test_what_cannot_be_served_is_named(server, fields, param, says):
    reply = http.post(f"{server.url}/v1/responses", json={"input": "Hi"} | fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert says in error["message"] and len(error["message"]) < 700


def test_neutral_values_are_taken(ask):
    plain = ask(temperature=0, max_output_tokens=4).output_text
    for neutral in ({"background": False}, {"truncation": "disabled"}, {"include": ["reasoning.encrypted_content"]},
                    {"include": []},
                    {"tools": []}, {"parallel_tool_calls": True}, {"text": {"format": {"type": "text"}, "verbosity": "low"}},
                    {"reasoning": {}}, {"service_tier": "auto"}, {"user": "me"}, {"top_logprobs": 0},
                    {"previous_response_id": None}):
        assert ask(temperature=0, max_output_tokens=4, **neutral).output_text == plain


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_calls_that_must_be_made(ask, choice):
    for stream in (False, True):
        said = ask(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, temperature=0, max_output_tokens=600,
                   stream=stream)
        response = list(said)[-1].response if stream else said
        item, = response.output
        assert (item.type, item.name) == ("function_call", "get_weather")
        if response.status == "completed":  # the string may run on until there is no room
            assert list(json.loads(item.arguments)) == ["city"]


class Animal(BaseModel):
    kind: Literal["hen", "fox"]
    number: Annotated[int, Field(ge=0, le=99)]


def test_text_that_has_a_shape(client, replay):
    said = client.responses.parse(model="offline", input="Which animal?", text_format=Animal)
    assert isinstance(said.output_parsed, Animal) and said.text.format.type == "json_schema"
    with client.responses.stream(model="offline", input="Which animal?", text_format=Animal) as stream:
        list(stream)
        assert isinstance(stream.get_final_response().output_parsed, Animal)
    thinking = {"chat_template_kwargs": {"enable_thinking": True}, "seed": replay.seed("Hm { .</think>", ends=False)}
    said = client.responses.parse(model="offline", input="Which animal?", text_format=Animal, extra_body=thinking)
    assert said.output[0].content[0].text == "Hm { ." and isinstance(said.output_parsed, Animal)
