"""Log-probabilities of a text that the client brings: echo, prompt_logprobs and max_tokens 0, as lm-eval asks for them."""

import json

import httpx
import pytest
import torch

from nanovllm import SamplingParams, __version__
from nanovllm.config import OFFLINE_MODEL

from .conftest import http

CONTEXT, CONTINUATION = "Once upon a time there lived", " a kind hen in a small house."


@pytest.fixture(scope="module")
def reference():
    """transformers' log-probabilities: (token ids) -> [len - 1, vocab_size], row i of the token after i."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(OFFLINE_MODEL, dtype=torch.float32).eval()

    def logprobs(ids: list[int]):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)

    return logprobs


@pytest.fixture
def ask(server):
    def ask(path="completions", **body):
        reply = http.post(f"{server.url}/v1/{path}", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()
    return ask


def test_scores_of_tokenised_prompts_are_the_models(server, ask, reference):
    """What lm-eval's local-completions sends for loglikelihood, a batch of token ids, and what it reads."""
    encode = server.llm.tokenizer.encode
    pairs = [(encode(CONTEXT), encode(CONTINUATION)), (encode("A fox"), encode(" met an owl")), (encode("x"), encode("yz"))]
    wholes = [context + continuation for context, continuation in pairs]
    for how in (dict(max_tokens=0), dict(max_tokens=1)):
        answer = ask(prompt=wholes, temperature=0, logprobs=1, echo=True, seed=1234, **how)
        for choice, ids in zip(answer["choices"], wholes):
            end = len(ids)
            right = reference(ids).gather(1, torch.tensor(ids)[1:, None])[:, 0]
            got = choice["logprobs"]["token_logprobs"]
            assert got[0] is None and len(got) == end + how["max_tokens"]
            assert got[1:end] == pytest.approx(right.tolist(), abs=1e-4)
            assert choice["logprobs"]["top_logprobs"][0] is None
            greedy = [max(top.values()) == own for top, own in zip(choice["logprobs"]["top_logprobs"][1:end], got[1:end])]
            assert greedy == [bool(rows.argmax() == token) for rows, token in zip(reference(ids), ids[1:])]
        assert answer["usage"]["completion_tokens"] == how["max_tokens"] * 3
        assert answer["usage"]["prompt_tokens"] == sum(map(len, wholes))


def test_an_echo_begins_with_the_prompt_and_its_offsets_fit(ask):
    plain = ask(prompt=CONTEXT, temperature=0, max_tokens=6, logprobs=2)["choices"][0]
    echoed = ask(prompt=CONTEXT, temperature=0, max_tokens=6, logprobs=2, echo=True)["choices"][0]
    assert echoed["text"] == CONTEXT + plain["text"]
    lines = echoed["logprobs"]
    assert "".join(lines["tokens"]) == echoed["text"] and lines["tokens"][-6:] == plain["logprobs"]["tokens"]
    for offset, token in zip(lines["text_offset"], lines["tokens"]):
        assert echoed["text"][offset:].startswith(token)
    assert lines["token_logprobs"][-6:] == pytest.approx(plain["logprobs"]["token_logprobs"], abs=1e-4)
    assert ask(prompt=CONTEXT, max_tokens=0, echo=True)["choices"][0] | {"index": 9} == {
        "index": 9, "text": CONTEXT, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    two = ask(prompt=[CONTEXT, "A fox"], n=2, seed=1, temperature=1, max_tokens=3, echo=True)["choices"]
    assert [choice["text"].startswith(("Once", "Once", "A fox", "A fox")[i]) for i, choice in enumerate(two)] == [True] * 4


def test_token_ids_are_echoed_as_text(server, ask):
    ids = server.llm.tokenizer.encode(CONTEXT)
    assert ask(prompt=ids, temperature=0, max_tokens=2, echo=True)["choices"][0]["text"].startswith(CONTEXT)


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_a_streamed_echo_is_the_whole_one_in_pieces(server, ask, max_tokens):
    body = dict(prompt=[CONTEXT, "A fox"], temperature=0, max_tokens=max_tokens, logprobs=1, echo=True)
    whole = ask(**body)["choices"]
    reply = http.post(f"{server.url}/v1/completions", json=body | {"stream": True})
    texts, logprobs, ends = ["", ""], ([], []), [None, None]
    for event in reply.text.split("\n\n")[:-2]:
        choice, = json.loads(event.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] = choice["finish_reason"]
        logprobs[choice["index"]].extend(choice["logprobs"]["token_logprobs"])
    assert texts == [choice["text"] for choice in whole] and ends == ["length"] * 2
    for got, choice in zip(logprobs, whole):
        assert got[1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-4)


def test_prompt_logprobs(llm, server, ask):
    want = llm.generate(CONTEXT, SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=2), use_tqdm=False)[0]
    choice, = ask(prompt=CONTEXT, temperature=0, max_tokens=2, prompt_logprobs=2)["choices"]
    assert choice["prompt_logprobs"][0] is None and choice["logprobs"] is None
    for got, right in zip(choice["prompt_logprobs"][1:], want.prompt_logprobs[1:]):
        assert {int(token) for token in got} == set(right)
        for token, entry in right.items():
            assert got[str(token)]["logprob"] == pytest.approx(entry.logprob, abs=1e-4)
            assert (got[str(token)]["rank"], got[str(token)]["decoded_token"]) == (entry.rank, entry.decoded_token)
    chat = ask("chat/completions", messages=[{"role": "user", "content": "Hi"}], max_tokens=0, prompt_logprobs=0)
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"] and chat["usage"]["completion_tokens"] == 0
    assert chat["choices"][0]["message"]["content"] == ""
    reply = http.post(f"{server.url}/v1/completions", json={"prompt": "a", "prompt_logprobs": 1, "stream": True})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "prompt_logprobs"


def test_tokens_named_by_their_ids(server, ask):
    ids = server.llm.tokenizer.encode(CONTEXT)
    lines = ask(prompt=CONTEXT, max_tokens=0, logprobs=1, echo=True, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert lines["tokens"] == [f"token_id:{token}" for token in ids]


def test_tokenize_and_detokenize(server):
    def post(path, **body):
        return http.post(f"{server.url}/{path}", json=body)

    tokenizer, messages = server.llm.tokenizer, [{"role": "user", "content": "Hi"}]
    ids = tokenizer.encode(CONTEXT)
    assert post("tokenize", prompt=CONTEXT).json() == {"count": len(ids), "max_model_len": 2048, "tokens": ids,
                                                       "token_strs": None}
    assert post("tokenize", prompt="a hen", return_token_strs=True).json()["token_strs"] == tokenizer.tokenize("a hen")
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert post("tokenize", messages=messages).json()["tokens"] == tokenizer.encode(rendered, add_special_tokens=False)
    assert post("detokenize", tokens=ids).json() == {"prompt": CONTEXT}
    assert post("detokenize", tokens=[]).json() == {"prompt": ""}
    for path, body, field in (
            ("detokenize", {"tokens": [10**9]}, "tokens"), ("detokenize", {"tokens": [-1]}, "tokens"),
            ("detokenize", {"tokens": "a"}, "tokens"), ("detokenize", {"tokens": [2**70]}, "tokens"),
            ("tokenize", {}, "prompt"), ("tokenize", {"prompt": ""}, "prompt"), ("tokenize", {"messages": []}, "prompt"),
            ("tokenize", {"prompt": "a", "messages": messages}, "prompt"), ("tokenize", {"prompt": "x" * 300_000}, "prompt")):
        reply = post(path, **body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, field), (path, body)
    assert post("tokenize", prompt="a", model="other").status_code == 404


def test_what_a_remote_tokenizer_asks_for(server):
    """lm-eval's `tokenizer_backend=remote` renders chats and finds special tokens by it."""
    said = http.get(f"{server.url}/tokenizer_info").json()
    tokenizer = server.llm.tokenizer
    assert (said["eos_token"], said["pad_token"], said["bos_token"]) == ("<|im_end|>", "<|endoftext|>", None)
    assert said["chat_template"] == tokenizer.chat_template and said["tokenizer_class"]


def test_small_endpoints(server):
    def get(path):
        return http.get(f"{server.url}{path}")

    assert get("/version").json() == {"version": __version__}
    assert get("/ping").json() == {"status": "ok"} == http.post(f"{server.url}/ping").json()
    assert get("/load").json() == {"server_load": 0}
    body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as stream:
        pieces = stream.iter_bytes()
        next(pieces)
        assert get("/load").json() == {"server_load": 1}
    server.wait_until(lambda: get("/load").json() == {"server_load": 0})
    for path in ("embeddings", "moderations", "rerank", "score", "images/generations", "audio/speech", "files"):
        reply = http.post(f"{server.url}/v1/{path}", json={"input": "a"})
        assert reply.status_code == 404 and f"does not offer /v1/{path}" in reply.json()["error"]["message"]
