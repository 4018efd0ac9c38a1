"""What real clients send and expect beyond the OpenAI API's letter: neutral values, echoed keys, vLLM's own fields."""

import json
import re

import pytest

from nanovllm import SamplingParams

from .conftest import http, running_server

PROMPT = "Once upon a time a fox"
MESSAGES = [{"role": "user", "content": "Tell me about a hen."}]


def post(server, path, body, **request):
    reply = http.post(f"{server.url}{path}", json=body, **request)
    assert reply.status_code == 200, reply.text
    return reply.json()


def chat(server, **fields):
    return post(server, "/v1/chat/completions", {"messages": MESSAGES, "temperature": 0, "max_tokens": 6} | fields)


def events(server, path, body) -> list[dict]:
    reply = http.post(f"{server.url}{path}", json=body | {"stream": True})
    assert reply.status_code == 200, reply.text
    *chunks, done, end = reply.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


@pytest.mark.parametrize("neutral", [
    {"top_logprobs": 0}, {"echo": False}, {"add_generation_prompt": True}, {"continue_final_message": False},
    {"use_beam_search": False}, {"length_penalty": 1}, {"length_penalty": 1.0}, {"priority": 0}, {"seed": -1}, {"tools": None},
    {"foo": None}, {"safety_identifier": "me"}, {"prompt_cache_key": "k"}, {"verbosity": "low"}, {"tools": []},
    {"tool_choice": None}, {"tool_choice": "none"}, {"parallel_tool_calls": True}, {"response_format": None},
    {"structured_outputs": None}, {"structured_outputs": {}}, {"guided_json": None}, {"logit_bias": {}}, {"stop": []},
    {"stop": ""}, {"stop_token_ids": []}, {"bad_words": []}, {"best_of": 1}, {"early_stopping": False}, {"logprobs": None},
    {"logprobs": False, "top_logprobs": None}, {"stream": False, "stream_options": None}, {"stream_options": None},
    {"reasoning_effort": None}, {"include_reasoning": True}, {"metadata": {}}, {"service_tier": "auto"}, {"store": False},
    {"chat_template_kwargs": {}}, {"chat_template_kwargs": None}, {"chat_template": None}, {"documents": None},
    {"spaces_between_special_tokens": True}, {"truncate_prompt_tokens": None}, {"add_special_tokens": False}, {"n": 1},
    {"prompt_logprobs": None}, {"top_k": -1}, {"top_k": 2**31 - 1}, {"min_tokens": 0}, {"ignore_eos": False}, {"min_p": 0},
    {"modalities": ["text"]}, {"audio": None}, {"function_call": "none"}, {"functions": None}, {"user": None},
    {"cache_salt": None}, {"cache_salt": ""}, {"bad_words": None}, {"allowed_token_ids": None},
    {"mm_processor_kwargs": None}, {"kv_transfer_params": None}, {"return_token_ids": False}, {"request_id": None},
    {"max_completion_tokens": None}, {"model": None},
])
def test_what_asks_for_nothing_changes_nothing(server, neutral):
    plain = chat(server)["choices"]
    assert chat(server, **neutral)["choices"] == plain


@pytest.mark.parametrize("key", ["echo", "best_of", "suffix", "use_beam_search", "length_penalty", "seed"])
def test_neutral_values_of_a_completion(server, key):
    values = {"echo": False, "best_of": 1, "suffix": "", "use_beam_search": False, "length_penalty": 1.0, "seed": -1}
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 5}
    plain = post(server, "/v1/completions", body)["choices"]
    assert post(server, "/v1/completions", body | {key: values[key]})["choices"] == plain
    assert post(server, "/v1/completions", body | {key: None})["choices"] == plain


@pytest.mark.parametrize("extra", [
    {"reasoning_content": None}, {"provider_specific_fields": None}, {"provider_specific_fields": {"a": 1}},
    {"tool_call_id": None}, {"refusal": None}, {"tool_calls": None}, {"tool_calls": []}, {"function_call": None},
    {"audio": None}, {"annotations": []}, {"name": None}, {"reasoning": None}, {"anything": None}, {"thinking_blocks": None},
    {"reasoning_content": "hm"}, {"id": "msg_1"}, {"images": []}, {"cache_control": {"type": "ephemeral"}},
    {"refusal": None, "reasoning_content": None, "tool_calls": None, "function_call": None, "annotations": []},
])
def test_what_programs_echo_back_in_a_message_is_taken(server, extra):
    def ask(extra):
        history = [*MESSAGES, {"role": "assistant", "content": "A hen lived."} | extra, {"role": "user", "content": "And?"}]
        return chat(server, messages=history)

    assert ask(extra)["choices"] == ask({})["choices"]


def test_a_whole_answer_may_be_handed_back(server):
    message = chat(server)["choices"][0]["message"]
    assert chat(server, messages=[*MESSAGES, message, {"role": "user", "content": "And?"}])["usage"]["prompt_tokens"] > 20


def test_names_and_reasoning_reach_the_template(server, monkeypatch):
    monkeypatch.setattr(server.llm.tokenizer, "chat_template",
                        "{% for m in messages %}[{{ m.name }}|{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}")
    messages = [{"role": "user", "content": "a", "name": "Ann"},
                {"role": "assistant", "content": "b", "reasoning_content": "r"}, {"role": "user", "content": "c"}]
    tokens = post(server, "/tokenize", {"messages": messages})["tokens"]
    assert server.llm.tokenizer.decode(tokens) == "[Ann||a][|r|b][||c]"


@pytest.mark.filterwarnings("error")
def test_variables_of_the_template(server, monkeypatch):
    assert chat(server, chat_template_kwargs={"think_hard": False, "x": [1]})["choices"] == chat(server)["choices"]
    monkeypatch.setattr(server.llm.tokenizer, "chat_template", "{{ messages[0].content }}{% if quiet %} quietly{% endif %}")
    for variables, text in (({"quiet": True}, "Tell me about a hen. quietly"), ({"loud": True}, "Tell me about a hen.")):
        ids = post(server, "/tokenize", {"messages": MESSAGES, "chat_template_kwargs": variables})["tokens"]
        assert server.llm.tokenizer.decode(ids) == text


def test_a_begun_answer_goes_on(server):
    tokenizer, begun = server.llm.tokenizer, [*MESSAGES, {"role": "assistant", "content": "A hen lived in"}]

    def tokens(**how):
        return post(server, "/tokenize", {"messages": begun} | how)["tokens"]

    open_text = tokenizer.decode(tokens(continue_final_message=True))
    assert open_text.endswith("A hen lived in")
    assert tokenizer.decode(tokens(add_generation_prompt=False)).count("assistant") == 1
    assert tokenizer.decode(tokens()).count("assistant") == 2
    answer = chat(server, messages=begun, continue_final_message=True)
    assert answer["usage"]["prompt_tokens"] == len(tokens(continue_final_message=True))
    whole = post(server, "/v1/completions", {"prompt": tokens(continue_final_message=True), "temperature": 0, "max_tokens": 6})
    assert answer["choices"][0]["message"]["content"] == whole["choices"][0]["text"]
    reply = http.post(f"{server.url}/v1/chat/completions", json={"messages": begun, "continue_final_message": True,
                                                                  "add_generation_prompt": True})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "add_generation_prompt"


def test_usage_in_every_chunk(server):
    """What guidellm sends always: the usage so far beside every piece."""
    for path, body in (("/v1/completions", {"prompt": PROMPT}), ("/v1/chat/completions", {"messages": MESSAGES})):
        body |= {"temperature": 0, "max_tokens": 7, "ignore_eos": True}
        both = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        *chunks, last = events(server, path, body | both)
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and counts[-1] == 7 and last["usage"]["completion_tokens"] == 7
        assert all(chunk["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] for chunk in chunks[1:])
        both["stream_options"]["continuous_usage_stats"] = False
        *chunks, last = events(server, path, body | both)
        assert all(chunk["usage"] is None for chunk in chunks) and last["usage"]["total_tokens"] > 7
        assert "usage" not in events(server, path, body | {"stream_options": {"continuous_usage_stats": True}})[-1]
        assert "usage" not in events(server, path, body | {"stream_options": {}})[-1]


def test_the_models_own_sampling_defaults_hold_where_a_request_is_silent(llm, server):
    """generation_config.json of the offline model recommends temperature 0.7 and top_p 0.95."""
    body = {"prompt": PROMPT, "max_tokens": 30, "seed": 5}
    recommended, plain, odd = ({"temperature": 0.7, "top_p": 0.95}, {"temperature": 1.0, "top_p": 1.0},
                               {"temperature": 1.5, "top_p": 0.95})

    def expected(values):
        params = SamplingParams(max_tokens=30, seed=5, **values)
        return llm.generate(PROMPT, params, use_tqdm=False)[0].text

    texts = [expected(values) for values in (recommended, plain, odd)]
    assert len(set(texts)) == 3
    assert post(server, "/v1/completions", body)["choices"][0]["text"] == texts[0]
    assert post(server, "/v1/completions", body | plain)["choices"][0]["text"] == texts[1]
    assert post(server, "/v1/completions", body | {"temperature": 1.5})["choices"][0]["text"] == texts[2]
    chat_body = {"messages": MESSAGES, "max_tokens": 30, "seed": 5}
    assert post(server, "/v1/chat/completions", chat_body)["choices"] == post(
        server, "/v1/chat/completions", chat_body | recommended)["choices"]
    with running_server(llm, generation_config="vllm") as other:
        assert post(other, "/v1/completions", body)["choices"][0]["text"] == texts[1]


def test_request_ids(server):
    body = {"prompt": PROMPT, "max_tokens": 1}
    reply = http.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1" and reply.json()["id"] == "cmpl-mine-1"
    assert http.post(f"{server.url}/v1/completions", json=body | {"request_id": "own"}).json()["id"] == "cmpl-own"
    reply = http.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1})
    made = reply.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made) and reply.json()["id"] == f"chatcmpl-{made}"
    for odd in ("x" * 129, "two words", ""):  # a log line and a header must be able to carry it
        reply = http.get(f"{server.url}/health", headers={"X-Request-Id": odd})
        assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    for status, reply in ((404, http.get(f"{server.url}/nothing", headers={"X-Request-Id": "a"})),
                          (400, http.post(f"{server.url}/v1/completions", json={}, headers={"X-Request-Id": "a"}))):
        assert (reply.status_code, reply.headers["x-request-id"]) == (status, "a")
    first, *_ = events(server, "/v1/completions", body | {"request_id": "streamed"})
    assert first["id"] == "cmpl-streamed"


def test_token_ids_come_back_when_asked_for(server):
    ids = server.llm.tokenizer.encode(PROMPT)
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 5, "return_token_ids": True}
    choice, = post(server, "/v1/completions", body)["choices"]
    assert choice["prompt_token_ids"] == ids and server.llm.tokenizer.decode(choice["token_ids"]) == choice["text"]
    first, *chunks = events(server, "/v1/completions", body)
    assert first["choices"][0]["prompt_token_ids"] == ids
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == choice["token_ids"]
    answer = chat(server, return_token_ids=True)
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert server.llm.tokenizer.decode(answer["choices"][0]["token_ids"]) == answer["choices"][0]["message"]["content"]
    chunks = events(server, "/v1/chat/completions", {"messages": MESSAGES, "temperature": 0, "max_tokens": 6,
                                                     "return_token_ids": True})
    streamed = [token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids", [])]
    assert streamed == answer["choices"][0]["token_ids"]
    assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [answer["prompt_token_ids"]]


def test_a_prompt_may_be_cut_from_the_left(server):
    ids = server.llm.tokenizer.encode(PROMPT + " met a hen and a bear and an owl")
    body = {"temperature": 0, "max_tokens": 5}
    cut = post(server, "/v1/completions", body | {"prompt": ids, "truncate_prompt_tokens": 4})
    assert cut["usage"]["prompt_tokens"] == 4
    assert cut["choices"] == post(server, "/v1/completions", body | {"prompt": ids[-4:]})["choices"]
    uncut = post(server, "/v1/completions", body | {"prompt": ids, "truncate_prompt_tokens": 500})
    assert uncut["usage"]["prompt_tokens"] == len(ids)
    long = post(server, "/v1/completions", body | {"prompt": [7] * 3000, "truncate_prompt_tokens": -1})
    assert long["usage"]["prompt_tokens"] == 2048 - 5
    text = post(server, "/v1/completions", body | {"prompt": "story " * 3000, "truncate_prompt_tokens": 100, "echo": True})
    assert text["usage"]["prompt_tokens"] == 100 and text["choices"][0]["text"].startswith(" story")


def test_priority_is_handed_to_the_scheduler(server, monkeypatch):
    seen, enqueue = [], server.llm.engine.enqueue
    monkeypatch.setattr(server.llm.engine, "enqueue", lambda seq: seen.append(seq.priority) or enqueue(seq))
    for fields in ({"priority": -5}, {"priority": 7}, {}):
        chat(server, **fields)
    assert seen == [-5, 7, 0]
