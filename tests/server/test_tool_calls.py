"""Tool calls and thoughts as the official client gets them, whole and streamed.

The offline model is not asked what to say here: a sampler replays texts of a model that calls tools of its own accord.
"""

import json
import time

import openai
import pytest

from nanovllm import LLM

from .conftest import Replay, http, running_server

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                   "required": ["city"]}}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
THINKING = {"enable_thinking": True}


def call(name="get_weather", **arguments) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


@pytest.fixture
def ask(client):
    def ask(messages=QUESTION, **fields):
        beyond = {name: fields.pop(name) for name in ("chat_template_kwargs", "include_reasoning", "return_token_ids")
                  if name in fields}
        return client.chat.completions.create(model="offline", messages=messages, extra_body=beyond, **fields)
    return ask


def together(chunks) -> list[dict]:
    """The messages that a stream's deltas make, as a client puts them together."""
    messages: dict[int, dict] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            message = messages.setdefault(choice.index, {"content": "", "reasoning": "", "calls": [], "finish": None})
            delta = choice.delta
            assert message["finish"] is None, "nothing comes after the end"
            message["content"] += delta.content or ""
            message["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            for part in delta.tool_calls or []:
                if part.index == len(message["calls"]):
                    assert part.id.startswith("call_") and part.type == "function" and part.function.arguments == ""
                    message["calls"].append([part.id, part.function.name, ""])
                else:
                    assert part.index == len(message["calls"]) - 1 and part.id is None and part.function.name is None
                    message["calls"][-1][2] += part.function.arguments
            message["finish"] = choice.finish_reason
    return [messages[i] for i in sorted(messages)]


TEXTS = [
    (call(city="Paris"), None, [("get_weather", '{"city": "Paris"}')]),
    ("Let me look.\n" + call(city="Paris") + "\n" + call("now"), "Let me look.",
     [("get_weather", '{"city": "Paris"}'), ("now", "{}")]),
    ("It is sunny.", "It is sunny.", []),
    ('<tool_call>\n{"name": "now", "arg": {}}\n</tool_call>', '<tool_call>\n{"name": "now", "arg": {}}\n</tool_call>', []),
    (call("never_heard_of", a=[1, {"b": "é \" }"}]), None, [("never_heard_of", json.dumps({"a": [1, {"b": 'é " }'}]}))]),
]


@pytest.mark.parametrize("text, content, calls", TEXTS)
@pytest.mark.parametrize("choice", [None, "auto"])
def test_calls_of_a_whole_answer(ask, replay, text, content, calls, choice):
    answer = ask(tools=TOOLS, seed=replay.seed(text), **({"tool_choice": choice} if choice else {})).choices[0]
    assert (answer.message.content, answer.message.role) == (content, "assistant")
    assert [(each.function.name, each.function.arguments) for each in answer.message.tool_calls or []] == calls
    assert answer.finish_reason == ("tool_calls" if calls else "stop")
    assert all(each.type == "function" and each.id.startswith("call_") for each in answer.message.tool_calls or [])
    assert len({each.id for each in answer.message.tool_calls or []}) == len(calls)


@pytest.mark.parametrize("text, content, calls", TEXTS)
def test_calls_of_a_stream(ask, replay, text, content, calls):
    chunks = list(ask(tools=TOOLS, seed=replay.seed(text), stream=True, stream_options={"include_usage": True}))
    message, = together(chunks)
    assert (message["content"] or None, [tuple(each[1:]) for each in message["calls"]]) == (content, calls)
    assert message["finish"] == ("tool_calls" if calls else "stop")
    if calls and len(calls[0][1]) > 10:  # the arguments come in pieces, not in one at the end
        assert sum(bool(chunk.choices and chunk.choices[0].delta.tool_calls) for chunk in chunks) > 3
    assert chunks[-1].usage.completion_tokens > 1 and chunks[-1].choices == []


def test_a_call_that_max_tokens_cuts_off(ask, replay, server):
    """The whole answer has it as text; a stream has let go the call's beginning by then, if its name was out."""
    text = "Hm. " + call(city="Paris")
    seed, num_tokens = replay.seed(text), len(server.llm.tokenizer.encode(text[:text.rindex('"}}')]))
    for most in (*range(8, num_tokens, 6), num_tokens):
        whole = ask(seed=seed, tools=TOOLS, max_tokens=most).choices[0]
        assert whole.finish_reason == "length" and whole.message.tool_calls is None
        assert whole.message.content.startswith("Hm. <") and text.startswith(whole.message.content)
        message, = together(ask(seed=seed, tools=TOOLS, max_tokens=most, stream=True))
        assert message["finish"] == "length"
        if message["calls"]:
            (_, name, arguments), = message["calls"]
            assert name == "get_weather" and '{"city": "Paris"}'.startswith(arguments) and message["content"] == "Hm."
        else:
            assert message["content"] == whole.message.content
    assert message["calls"]


BROKEN = '<tool_call>\n{"name": "now", "arguments": {"a": oops}}\n</tool_call>'


@pytest.mark.parametrize("before, after, num_calls", [("", "", 0), ("Hm. ", " Well.", 0), ("", "\n" + call(city="Paris"), 1),
                                                     (call(city="Paris") + "\n", "", 1)])
def test_a_call_that_breaks_after_its_name(ask, replay, before, after, num_calls):
    """Whole, it is text, and the others are calls. A stream has let go its beginning, and says at its end whether any call was
    made."""
    seed = replay.seed(before + BROKEN + after)
    whole = ask(seed=seed, tools=TOOLS).choices[0]
    calls = [(each.function.name, each.function.arguments) for each in whole.message.tool_calls or []]
    assert calls == [("get_weather", '{"city": "Paris"}')] * num_calls and BROKEN in whole.message.content
    assert whole.finish_reason == ("tool_calls" if num_calls else "stop")
    chunks = list(ask(seed=seed, tools=TOOLS, stream=True))
    message, = together(chunks)
    assert message["finish"] == whole.finish_reason and chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert [each[1:] for each in message["calls"] if each[1] != "now"] == [list(each) for each in calls]
    (_, _, begun), = [each for each in message["calls"] if each[1] == "now"]
    assert '{"a": oops}'.startswith(begun) and len({each[0] for each in message["calls"]}) == num_calls + 1
    assert message["content"].replace("</tool_call>", "").split() == (before + after if not num_calls else "").split()


def test_without_tools_or_with_none_to_be_called_a_call_is_text(ask, replay):
    seed = replay.seed(call("now"))
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}):
        answer = ask(seed=seed, **fields).choices[0]
        assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == (call("now"), None, "stop")


def test_one_call_at_a_time(ask, replay):
    seed = replay.seed(call("now") + "\n" + call("now"))
    assert len(ask(seed=seed, tools=TOOLS).choices[0].message.tool_calls) == 2
    assert len(ask(seed=seed, tools=TOOLS, parallel_tool_calls=False).choices[0].message.tool_calls) == 1
    message, = together(ask(seed=seed, tools=TOOLS, parallel_tool_calls=False, stream=True))
    assert [each[1:] for each in message["calls"]] == [["now", "{}"]] and message["finish"] == "tool_calls"


def test_every_sample_has_its_own_calls(ask, replay):
    seed = replay.seed(call(city="Paris"))
    replay._texts[seed + 1] = replay._texts[replay.seed("None needed.")]
    whole = ask(seed=seed, n=2, tools=TOOLS).choices
    assert [choice.finish_reason for choice in whole] == ["tool_calls", "stop"]
    first, second = together(ask(seed=seed, n=2, tools=TOOLS, stream=True))
    assert first["calls"][0][1] == "get_weather" and second["content"] == "None needed." and not second["calls"]


def test_an_agent_goes_round(client, server, ask, replay):
    """A call, its result, and an answer: the conversation is handed back as the client's own objects."""
    first = ask(tools=TOOLS, seed=replay.seed(call(city="Paris") + "\n" + call("now"))).choices[0].message
    messages = [*QUESTION, first, *({"role": "tool", "tool_call_id": each.id, "content": '{"sky": "blue"}'}
                                    for each in first.tool_calls)]
    second = ask(messages, tools=TOOLS, seed=replay.seed("It is blue.")).choices[0]
    assert second.message.content == "It is blue." and second.finish_reason == "stop"
    body = {"messages": [each if isinstance(each, dict) else each.model_dump() for each in messages], "tools": TOOLS}
    tokens = http.post(f"{server.url}/tokenize", json=body).json()["tokens"]
    prompt = server.llm.tokenizer.decode(tokens)
    assert call(city="Paris") + "\n" + call("now") + "<|im_end|>" in prompt
    assert prompt.count('<tool_response>\n{"sky": "blue"}\n</tool_response>') == 2
    assert json.dumps(WEATHER) in prompt and json.dumps(NOW) in prompt
    as_dicts = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}},
        {"type": "function", "function": {"name": "now", "arguments": ""}}]}, *body["messages"][2:]]
    assert http.post(f"{server.url}/tokenize", json=body | {"messages": as_dicts}).json()["tokens"] == tokens


def test_a_stop_string_and_logprobs_go_with_calls(ask, replay):
    seed = replay.seed("Well. " + call(city="Paris"))
    answer = ask(seed=seed, tools=TOOLS, logprobs=True, return_token_ids=True).choices[0]
    assert "".join(entry.token for entry in answer.logprobs.content[:-1]) == "Well. " + call(city="Paris")
    chunks = list(ask(seed=seed, tools=TOOLS, logprobs=True, stream=True, return_token_ids=True))
    entries = [entry for chunk in chunks if chunk.choices and chunk.choices[0].logprobs
               for entry in chunk.choices[0].logprobs.content]
    assert [entry.token for entry in entries] == [entry.token for entry in answer.logprobs.content]
    ids = [token for chunk in chunks for choice in chunk.choices for token in getattr(choice, "token_ids", None) or []]
    assert ids == answer.token_ids
    stopped = ask(seed=seed, tools=TOOLS, stop="<tool_call>").choices[0]
    assert (stopped.message.content, stopped.message.tool_calls, stopped.stop_reason) == ("Well. ", None, "<tool_call>")


@pytest.mark.parametrize("fields, param, says", [
    ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "required"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"), ({"tools": {}}, "tools", "list"),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name", "pattern"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools.0.function.parameters", "dict"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
     "tools.0.function.parameters", "of type 'object'"),
    ({"tools": [NOW, NOW]}, "tools", "once each"), ({"tools": [NOW] * 129}, "tools", "at most 128"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "then"}}}, "tool_choice", "one of the tools"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "none, auto, required"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "none, auto, required"),
    ({"tool_choice": "required"}, "tool_choice", "without tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, "tool_choice", "one of the tools"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {
        "properties": {f"x{i}": {"type": "string"} for i in range(3000)}}}}]}, "tools.0.function.parameters", "at most"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"description": "x" * 100_000}}}]},
     "tools.0.function.parameters", "at most 65536"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": json.loads('{"a":' * 80 + "1" + "}" * 80)}}]},
     "tools.0.function.parameters", "levels"),
    ({"tools": [{"type": "function", "function": {"name": "a", "description": "x " * 20_000}}]}, "tools", "characters"),
    ({"tools": [NOW | {"function": {"name": "a", "foo": 1}}]}, "tools.0.function.foo", "unknown field"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "a"}}]}]}, "messages.0.tool_calls",
     "'assistant'"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages.0.tool_calls.0.function",
     "required"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": 5}}]}]},
     "messages.0.tool_calls.0.function.arguments", "JSON object"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]}, "messages.0.tool_call_id", "'tool'"),
    ({"messages": [{"role": "tool", "tool_call_id": "a"}]}, "messages.0.content", "required"),
])
def test_what_is_wrong_with_tools_is_named(server, fields, param, says):
    reply = http.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 2} | fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert says in error["message"] and len(error["message"]) < 700


def test_a_model_whose_template_knows_no_tools_is_not_offered_any(client, server, monkeypatch):
    for template in ("{{ messages[0].content }}", "{{ tools }}{{ messages[0].content }}",
                     "{{ tools }}{{ messages[0].content }}<tool_call><function=f>"):
        monkeypatch.setattr(server.llm.tokenizer, "chat_template", template)
        with pytest.raises(openai.BadRequestError, match="chat template does not") as caught:
            client.chat.completions.create(model="offline", messages=QUESTION, tools=TOOLS)
        assert caught.value.param == "tools"
        client.chat.completions.create(model="offline", messages=QUESTION, tools=TOOLS, tool_choice="none", max_tokens=1)


THOUGHTS = "The user asks for the weather.\nI know it."


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_come_apart(ask, replay, stream):
    seed = replay.seed(f"{THOUGHTS}\n</think>\n\nIt is sunny.")
    answer = ask(seed=seed, chat_template_kwargs=THINKING, stream=stream,
                 **({"stream_options": {"include_usage": True}} if stream else {}))
    if stream:
        chunks = list(answer)
        message, = together(chunks)
        assert (message["reasoning"], message["content"], message["finish"]) == (THOUGHTS, "It is sunny.", "stop")
        usage = chunks[-1].usage
    else:
        message = answer.choices[0].message
        assert (message.reasoning_content, message.content) == (THOUGHTS, "It is sunny.")
        usage = answer.usage
    assert 5 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_thoughts_may_be_left_out_and_calls_follow_them(ask, replay):
    seed = replay.seed(f"{THOUGHTS}{call('now')}\n</think>\n\n{call(city='Paris')}")
    for stream in (False, True):
        for include in (True, False):
            answer = ask(seed=seed, tools=TOOLS, chat_template_kwargs=THINKING, include_reasoning=include, stream=stream)
            if stream:
                message, = together(answer)
                got = message["reasoning"] or None, [each[1] for each in message["calls"]], message["content"] or None
            else:
                message = answer.choices[0].message
                got = (getattr(message, "reasoning_content", None), [each.function.name for each in message.tool_calls],
                       message.content)
            assert got == (THOUGHTS + call("now") if include else None, ["get_weather"], None)


def test_a_model_that_opens_its_thoughts_itself(ask, replay):
    answer = ask(seed=replay.seed("<think>Hm.</think>Yes.")).choices[0].message
    assert (answer.reasoning_content, answer.content) == ("Hm.", "Yes.")
    assert ask(seed=replay.seed("Yes.")).choices[0].message.reasoning_content is None
    off = ask(seed=replay.seed("<think>Hm.</think>Yes."), chat_template_kwargs={"enable_thinking": False}).choices[0].message
    assert off.content == "<think>Hm.</think>Yes." and not hasattr(off, "reasoning_content")


def test_thoughts_that_never_end(ask, replay):
    seed = replay.seed(THOUGHTS * 3)
    answer = ask(seed=seed, chat_template_kwargs=THINKING, max_tokens=15)
    assert answer.choices[0].message.content == "" and answer.choices[0].finish_reason == "length"
    assert THOUGHTS.startswith(answer.choices[0].message.reasoning_content[:20])
    assert answer.usage.completion_tokens_details.reasoning_tokens <= 15


def test_reasoning_effort_turns_thinking_on_and_off(ask, replay, server, monkeypatch):
    seed = replay.seed("Hm.</think>Yes.")
    for effort in ("minimal", "low", "medium", "high"):
        assert ask(seed=seed, reasoning_effort=effort).choices[0].message.reasoning_content == "Hm."
    assert ask(seed=seed, reasoning_effort="none").choices[0].message.content == "Hm.</think>Yes."
    explicit = ask(seed=seed, reasoning_effort="high", chat_template_kwargs={"enable_thinking": False}).choices[0].message
    assert explicit.content == "Hm.</think>Yes."

    def refused(template, effort):
        monkeypatch.setattr(server.llm.tokenizer, "chat_template", template)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(reasoning_effort=effort, max_tokens=1)
        assert caught.value.param == "reasoning_effort"
        return str(caught.value)

    assert "knows no thoughts" in refused("{{ messages[0].content }}", "low")
    ask(reasoning_effort="none", max_tokens=1)
    assert "cannot turn thinking off" in refused("{{ messages[0].content }}<think>\n{# </think> #}", "none")
    assert ask(seed=seed, reasoning_effort="low").choices[0].message.reasoning_content == "Hm."
    monkeypatch.setattr(server.llm.tokenizer, "chat_template", "{{ messages[0].content }} {{ reasoning_effort }}")
    assert ask(reasoning_effort="minimal", max_tokens=1).usage.prompt_tokens > ask(max_tokens=1).usage.prompt_tokens


def test_the_server_may_be_told_to_leave_thoughts_where_they_are():
    text = "<think>Hm.</think>Yes."
    with LLM(device="cpu", num_kvcache_blocks=200) as llm, running_server(llm, reasoning_parser="none") as server:
        replay = llm.engine.model_runner.sampler = Replay(llm)
        body = {"messages": QUESTION, "seed": replay.seed(text)}
        message = http.post(f"{server.url}/v1/chat/completions", json=body).json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": text, "refusal": None}


# Calls that the model must make: no sampler replays them, the grammar alone makes an untaught model call.

LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": {
    "type": "object", "properties": {"kind": {"enum": ["hen", "fox"]},
                                     "number": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "number"], "additionalProperties": False}}}
STRICT = {"type": "function", "function": LOOK_UP["function"] | {"strict": True}}


def check_look_up(arguments: str) -> None:
    said = json.loads(arguments)
    assert set(said) == {"kind", "number"} and said["kind"] in ("hen", "fox") and 0 <= said["number"] <= 99


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice, parallel", [
    ("required", False), ("required", True), ({"type": "function", "function": {"name": "look_up"}}, None)])
def test_calls_that_must_be_made_fit_their_schema(ask, stream, choice, parallel):
    more = {} if parallel is None else {"parallel_tool_calls": parallel}
    for seed in range(2):
        answer = ask(tools=[LOOK_UP, NOW], tool_choice=choice, seed=seed, temperature=1, stream=stream, **more)
        if stream:
            message, = together(answer)
            calls, content, finish = [each[1:] for each in message["calls"]], message["content"] or None, message["finish"]
        else:
            message = answer.choices[0].message
            calls = [[each.function.name, each.function.arguments] for each in message.tool_calls]
            content, finish = message.content, answer.choices[0].finish_reason
        assert content is None and finish == "tool_calls" and 1 <= len(calls) <= (16 if parallel else 1)
        assert choice == "required" or calls[0][0] == "look_up"
        for name, arguments in calls:
            check_look_up(arguments) if name == "look_up" else pytest.fail(name) if name != "now" else None
            assert name != "now" or arguments == "{}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_thinks_first_calls_afterwards(ask, replay, stream):
    """The sampler replays the thoughts; what follows them is the model's own, as far as the grammar lets it."""
    seed = replay.seed("I shall look {it} up.\n</think>", ends=False)
    answer = ask(tools=[LOOK_UP], tool_choice="required", parallel_tool_calls=False, seed=seed, temperature=1, stream=stream,
                 chat_template_kwargs=THINKING)
    if stream:
        message, = together(answer)
        reasoning, content, calls = message["reasoning"], message["content"] or None, [each[1:] for each in message["calls"]]
    else:
        message = answer.choices[0].message
        reasoning, content = message.reasoning_content, message.content
        calls = [[each.function.name, each.function.arguments] for each in message.tool_calls]
    (name, arguments), = calls
    assert (reasoning, content, name) == ("I shall look {it} up.", None, "look_up")
    check_look_up(arguments)


def test_strict_tools_are_held_to_their_schema_when_they_are_called(ask, replay):
    """Text is free; once a call has begun, the grammar makes a right one of it."""
    plain = ask(tools=[STRICT], temperature=0, max_tokens=12).choices[0].message.content
    assert plain == ask(tools=[LOOK_UP], temperature=0, max_tokens=12).choices[0].message.content
    begun = 'Well. <tool_call>\n{"name": "look_up", "arguments": {"'
    for temperature in (0.5, 1):
        seed = replay.seed(begun, ends=False)
        message = ask(tools=[STRICT, NOW], temperature=temperature, seed=seed, max_tokens=60).choices[0].message
        assert message.content.startswith("Well.")
        check_look_up(message.tool_calls[0].function.arguments)


@pytest.mark.unmeasured
@pytest.mark.parametrize("parameters, says", [
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}, "required": ["a"]}, "look"),
    ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 1}}, "required": ["a"]}, ""),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/lost"}}}, ""), ({"properties": 5}, ""),
    ({"properties": {"a": {"type": "strin"}}}, ""),
])
def test_schemas_that_no_arguments_fit_are_refused_where_they_would_hold(server, parameters, says):
    body = {"messages": QUESTION, "max_tokens": 2, "tools": [{"type": "function", "function": {
        "name": "f", "parameters": parameters}}]}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        began = time.monotonic()
        reply = http.post(f"{server.url}/v1/chat/completions", json=body | {"tool_choice": choice})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "tools"), error
        assert says in error["message"] and "start:" not in error["message"] and time.monotonic() - began < 2
    assert http.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200  # nothing is held to it


SHAPE = {"type": "json_schema", "json_schema": {"name": "animal", "schema": LOOK_UP["function"]["parameters"]}}


def test_a_shape_after_thoughts_and_beside_tools(ask, replay):
    thought = ask(response_format=SHAPE, seed=replay.seed("It is {a} hen.</think>", ends=False), temperature=1,
                  chat_template_kwargs=THINKING).choices[0].message
    assert thought.reasoning_content == "It is {a} hen."
    check_look_up(thought.content)
    for begun, calls in (('<tool_call>\n{"name": "look', 1), ('{"kind"', 0)):
        message = ask(response_format=SHAPE, tools=[STRICT], seed=replay.seed(begun, ends=False), temperature=1,
                      parallel_tool_calls=False).choices[0].message
        assert len(message.tool_calls or []) == calls
        if not calls:
            check_look_up(message.content)


def test_a_grammar_of_the_clients_own_leaves_no_room_for_thoughts(server):
    body = {"messages": QUESTION, "structured_outputs": {"grammar": 'start: "yes" | "no"'}, "max_tokens": 5}
    assert http.post(f"{server.url}/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] in ("yes", "no")
    for more in ({"chat_template_kwargs": THINKING}, {"tools": TOOLS}):
        reply = http.post(f"{server.url}/v1/chat/completions", json=body | more)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "structured_outputs.grammar"), error
        assert "turn thinking off" in error["message"]
