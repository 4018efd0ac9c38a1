"""The checkpoints that travel with the package: they load without a word, keep to their sizes, and say what they said."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanovllm.config import DRAFT_MODEL, MOE_MODEL, OFFLINE_MODEL

LIMITS = {OFFLINE_MODEL: 12_000_000, DRAFT_MODEL: 2_500_000, MOE_MODEL: 8_000_000}
# Greedy text of the models in float32. New weights need new values: run this file and read them off the failures.
GREEDY_SHA256 = {"offline": "0883224ba3ef65a70e94c027879ccba6ba800ec5eb2e64dbc5d287b48a73a963",
                 "draft": "c082ba8c4f8da653e2c70320b68de9e00ae18a044d5e56c288342e11ff4c0256",
                 "moe": "7481b027ad7a36fa5c89445e099855c5f7baf600320c2083ddbd202fafaae088"}
folders = pytest.mark.parametrize("folder", LIMITS, ids=lambda folder: folder.name)


def greedy(folder, num_tokens=48) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=num_tokens)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1]:])


@folders
def test_size(folder):
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= LIMITS[folder], f"{folder.name} weighs {size} bytes"


@folders
def test_greedy_text(folder):
    text = greedy(folder)
    assert hashlib.sha256(text.encode()).hexdigest() == GREEDY_SHA256[folder.name], repr(text)


@pytest.mark.parametrize("folder", [OFFLINE_MODEL, MOE_MODEL], ids=lambda folder: folder.name)
def test_greedy_story_is_about_what_was_asked(folder):
    text = greedy(folder, 500)
    assert "fox" in text and "lantern" in text and text.endswith("<|im_end|>")


def test_they_load_in_transformers_without_a_word():
    code = (
        "import sys, transformers; from transformers.utils import logging; logging.disable_progress_bar()\n"
        "for folder in sys.argv[1:]:\n"
        "    transformers.AutoTokenizer.from_pretrained(folder)\n"
        "    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='bfloat16')"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, LIMITS)], capture_output=True, check=True, encoding="utf-8")
    assert done.stdout == "" and done.stderr == ""


def test_shape_is_what_the_engine_and_its_kernels_like():
    for folder in LIMITS:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["head_dim"] == 64 and config["tie_word_embeddings"] is True
        assert config["num_attention_heads"] in (2 * config["num_key_value_heads"], 3 * config["num_key_value_heads"])
        assert config["num_attention_heads"] * 64 != config["hidden_size"]
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
        assert config["max_position_embeddings"] >= 2048 and 2048 <= config["vocab_size"] <= 4096
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            assert config[key] % 2 == 0, key


TEXTS = ("A fox.", "北京，你好！", "🙂👩‍👩‍👧", " two  spaces\n\n\ttab ", "naïve", "e\u0301 decomposed", "1234")


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_gives_any_text_back(text):
    tokenizer = AutoTokenizer.from_pretrained(OFFLINE_MODEL)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_all_folders_have_one_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert len({(folder / name).read_bytes() for folder in LIMITS}) == 1
    tokenizer = AutoTokenizer.from_pretrained(OFFLINE_MODEL)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>" and tokenizer.bos_token is None
    assert tokenizer("<|im_start|>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<|im_start|>")]


def test_chats_without_tools_and_thinking_are_roles_and_texts():
    tokenizer = AutoTokenizer.from_pretrained(OFFLINE_MODEL)
    chat = [{"role": "system", "content": " s"}, {"role": "user", "content": "a\n"}, {"role": "assistant", "content": "b"},
            {"role": "system", "content": ""}, {"role": "critic", "content": "</think>"}]
    plain = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in chat)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == plain
    opened = tokenizer.apply_chat_template(chat, tokenize=False, tools=[], add_generation_prompt=True)
    assert opened == plain + "<|im_start|>assistant\n"
    for thinking, written in ((True, "<think>\n"), (False, "<think>\n\n</think>\n\n")):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        assert text == opened + written


def test_tools_are_written_as_qwen_writes_them():
    tokenizer = AutoTokenizer.from_pretrained(OFFLINE_MODEL)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"where": "Ülm"}'}},
             {"function": {"name": "weather", "arguments": {"where": "Ülm"}}}]
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "I look."},
            {"role": "tool", "content": "yes"}, {"role": "tool", "content": "no"}, {"role": "assistant", "content": "Both."}]
    called = '<tool_call>\n{"name": "weather", "arguments": {"where": "Ülm"}}\n</tool_call>'
    expected = (
        "<|im_start|>system\nBe kind.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n" + json.dumps(tool) +
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n<think>\nI look.\n</think>\n\n"
        f"{called}\n{called}<|im_end|>\n<|im_start|>user\n<tool_response>\nyes\n</tool_response>\n<tool_response>\nno\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\nBoth.<|im_end|>\n")
    assert tokenizer.apply_chat_template(chat, tools=[tool], tokenize=False) == expected
    # An answered question's thoughts are not repeated to the model.
    chat.append({"role": "user", "content": "Thanks."})
    again = tokenizer.apply_chat_template(chat, tools=[tool], tokenize=False)
    assert "I look." not in again and again.count(called) == 2
