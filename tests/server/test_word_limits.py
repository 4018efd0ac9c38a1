"""vLLM's allowed_token_ids, bad_words and cache_salt over HTTP."""

import json

import pytest

from .conftest import http

PROMPT = "Once upon a time a fox"
MESSAGES = [{"role": "user", "content": "Tell me about a hen."}]


def post(server, path, **body):
    reply = http.post(f"{server.url}/v1/{path}", json={"temperature": 0, "max_tokens": 12} | body)
    return reply.status_code, reply.json()


def test_allowed_tokens(server):
    allowed = [server.llm.tokenizer.encode(word)[0] for word in (" a", " fox", " hen")]
    status, reply = post(server, "completions", prompt=PROMPT, allowed_token_ids=allowed, ignore_eos=True,
                         return_token_ids=True)
    assert status == 200 and set(reply["choices"][0]["token_ids"]) <= set(allowed)
    for bad, says in (([], "one token id or more"), ([10**6], "vocabulary"), ([-1], "vocabulary"), (["a"], "integer"),
                      ([1] * 1025, "at most 1024")):
        status, reply = post(server, "completions", prompt=PROMPT, allowed_token_ids=bad)
        assert status == 400 and reply["error"]["param"].startswith("allowed_token_ids"), bad
        assert says in reply["error"]["message"]


@pytest.mark.parametrize("path, body", [("completions", {"prompt": PROMPT}), ("chat/completions", {"messages": MESSAGES})])
def test_bad_words(server, path, body):
    def text(reply):
        choice = reply["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]

    plain = text(post(server, path, **body)[1])
    word = max(plain.replace(".", " ").replace(",", " ").split(), key=len)
    status, reply = post(server, path, bad_words=[word], **body)
    assert status == 200 and word not in text(reply).replace(".", " ").split()
    for bad, says in (("fox", "list"), ([" "], "spaces"), ([5], "text"), (["\ud800"], "text"), (["x"] * 65, "at most 64")):
        content = json.dumps({**body, "bad_words": bad})
        reply = http.post(f"{server.url}/v1/{path}", content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "bad_words", bad
        assert says in reply.json()["error"]["message"]


def test_cache_salts(server):
    def cached(**fields):
        status, reply = post(server, "completions", prompt="A long story of a salted hen and a peppered fox " * 3, **fields)
        assert status == 200
        return (reply["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    assert [cached(cache_salt="mine"), cached(cache_salt="theirs"), cached()] == [0, 0, 0]
    assert cached(cache_salt="mine") == cached(cache_salt="theirs") == cached() == cached(cache_salt="") > 0
    for bad in (5, "x" * 5000):
        status, reply = post(server, "completions", prompt=PROMPT, cache_salt=bad)
        assert (status, reply["error"]["param"]) == (400, "cache_salt")
