"""The official client drives a real server: what it gets back is what the engine says."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanovllm import SamplingParams

from .conftest import http

PROMPT = "Once upon a time a fox"
MESSAGES = [{"role": "system", "content": "You tell stories."},
            {"role": "user", "content": "Tell me a story about a hen and a bell."}]
GREEDY = dict(model="offline", temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def story(llm):
    return llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)[0]


@pytest.fixture(scope="module")
def chat_story(llm):
    return llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)[0]


def test_completion(client, story):
    reply = client.completions.create(prompt=PROMPT, **GREEDY)
    choice, = reply.choices
    assert (choice.text, choice.finish_reason, choice.index) == (story.text, "length", 0)
    assert reply.object == "text_completion" and reply.model == "offline" and reply.id.startswith("cmpl-")
    assert reply.usage.prompt_tokens == len(story.prompt_token_ids)
    assert reply.usage.completion_tokens == len(story.token_ids) == 24
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 24
    assert client.completions.create(model="offline", prompt=PROMPT, temperature=0).usage.completion_tokens == 16


def test_chat_completion_and_a_conversation_that_goes_on(client, chat_story):
    reply = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    choice, = reply.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (chat_story.text, "assistant", "length")
    assert reply.object == "chat.completion" and reply.usage.prompt_tokens == len(chat_story.prompt_token_ids)
    again = client.chat.completions.create(model="offline", temperature=0, max_completion_tokens=3, messages=[
        *MESSAGES, choice.message,
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "then?"}]}])
    assert again.usage.prompt_tokens > reply.usage.total_tokens and again.usage.completion_tokens == 3
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_a_chat_without_max_tokens_ends_by_itself(client):
    choice, = client.chat.completions.create(model="offline", temperature=0, messages=MESSAGES).choices
    assert choice.finish_reason == "stop" and "<|" not in choice.message.content


def test_streaming_equals_not_streaming(client, story, chat_story):
    chunks = list(client.completions.create(prompt=PROMPT, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == story.text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len(chunks) > 12 and len({chunk.id for chunk in chunks}) == 1 and chunks[0].usage is None

    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].object == "chat.completion.chunk"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat_story.text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_usage_comes_last_in_a_stream_that_asks_for_it(client, story):
    *chunks, last = client.completions.create(prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY)
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(story.prompt_token_ids), 24)
    *_, last = client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY)
    assert last.choices == [] and last.usage.completion_tokens == 24


def test_the_stream_on_the_wire_is_server_sent_events(server):
    reply = http.post(f"{server.url}/v1/completions", json=GREEDY | {"prompt": PROMPT, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert json.loads(event.removeprefix("data: "))["object"] == "text_completion"


def test_every_shape_of_prompt(client, story):
    ids = story.prompt_token_ids
    for prompt, count in ((ids, 1), ([PROMPT], 1), ([PROMPT, PROMPT], 2), ([ids, ids, ids], 3)):
        reply = client.completions.create(prompt=prompt, **GREEDY)
        assert [choice.index for choice in reply.choices] == list(range(count))
        assert {choice.text for choice in reply.choices} == {story.text}
        assert reply.usage.completion_tokens == 24 * count


def test_stop_strings_end_a_text_before_them(client, story, chat_story):
    word = story.text.split()[6]
    for stop in (word, [word, "never said"]):
        choice, = client.completions.create(prompt=PROMPT, stop=stop, **GREEDY).choices
        assert (choice.finish_reason, choice.stop_reason) == ("stop", word)
        assert choice.text == story.text[:story.text.index(word)]
    chunks = client.completions.create(prompt=PROMPT, stop=word, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == story.text[:story.text.index(word)]


def test_samples_seeds_and_many_prompts_streamed_at_once(client):
    asked = dict(model="offline", prompt=[PROMPT, "A hen"], n=2, seed=7, temperature=0.9, max_tokens=10)
    choices = client.completions.create(**asked).choices
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in choices}) >= 3
    texts, ends = [""] * 4, {}
    for chunk in client.completions.create(stream=True, **asked):
        choice, = chunk.choices
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in choices] and set(ends.values()) == {"length"}
    chat = client.chat.completions.create(model="offline", messages=MESSAGES, n=2, seed=7, temperature=0.9, max_tokens=10)
    texts = ["", ""]
    for chunk in client.chat.completions.create(model="offline", messages=MESSAGES, n=2, seed=7, temperature=0.9, max_tokens=10,
                                                stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in chat.choices]


def test_fields_beyond_the_openai_api(client, story):
    reply = client.completions.create(prompt=PROMPT, **GREEDY, extra_body=dict(
        stop_token_ids=[story.token_ids[4]], min_tokens=2, ignore_eos=True, top_k=5, min_p=0.1))
    assert reply.choices[0].stop_reason == story.token_ids[4] and reply.usage.completion_tokens <= 24


def test_sixteen_clients_at_once_get_what_each_gets_alone(server):
    def ask(i: int) -> str:
        with server.client() as client:
            how = dict(model="offline", max_tokens=8 + i, temperature=0 if i % 2 else 0.8, seed=i)
            if i % 4 < 2:
                return client.completions.create(prompt=f"Story {i}: once", **how).choices[0].text
            chunks = client.chat.completions.create(messages=[{"role": "user", "content": f"Story {i}"}], stream=True, **how)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    alone = [ask(i) for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == alone


def test_models_and_health(client, server):
    model, = client.models.list().data
    assert model.id == "offline" == client.models.retrieve("offline").id
    assert model.max_model_len == server.llm.config.max_model_len
    assert http.get(f"{server.url}/health").json() == {"status": "ok"}


def test_logprobs_of_completions(client, llm, story):
    whole = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=24, logprobs=3), use_tqdm=False)[0]
    got = client.completions.create(prompt=PROMPT, logprobs=3, **GREEDY).choices[0].logprobs
    assert "".join(got.tokens) == story.text and got.text_offset[5] == len("".join(got.tokens[:5]))
    drawn = [entry[token].logprob for token, entry in zip(whole.token_ids, whole.logprobs)]
    assert got.token_logprobs == pytest.approx(drawn, abs=1e-4)
    assert all(len(top) == 3 and max(top.values()) == top[token] for token, top in zip(got.tokens, got.top_logprobs))
    chunks = [chunk.choices[0] for chunk in client.completions.create(prompt=PROMPT, logprobs=3, stream=True, **GREEDY)]
    streamed = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert [token for part in streamed for token in part.tokens] == got.tokens
    assert [offset for part in streamed for offset in part.text_offset] == got.text_offset
    assert client.completions.create(prompt=PROMPT, **GREEDY).choices[0].logprobs is None


def test_logprobs_of_chats(client, chat_story):
    asked = dict(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == chat_story.text
    for entry in content:
        assert [top.logprob for top in entry.top_logprobs] == sorted((top.logprob for top in entry.top_logprobs), reverse=True)
        assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].token == entry.token  # greedy draws the likeliest
        assert entry.logprob <= 0 and bytes(entry.bytes).decode() == entry.token
    streamed = [entry for chunk in client.chat.completions.create(stream=True, **asked) if chunk.choices[0].logprobs
                for entry in chunk.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    assert client.chat.completions.create(**asked | {"top_logprobs": None}).choices[0].logprobs.content[0].top_logprobs == []


def test_the_readmes_example_runs(server, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    example, = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "OpenAI" in block)
    assert "http://127.0.0.1:8000" in example
    exec(example.replace("http://127.0.0.1:8000", server.url), {})
    assert len(capsys.readouterr().out) > 100
