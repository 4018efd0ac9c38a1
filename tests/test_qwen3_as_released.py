"""A random checkpoint with every key of the released Qwen3-0.6B's files: eos lists, sampling defaults, YaRN, thinking."""

import asyncio
import json
import shutil

import pytest
import torch
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from nanovllm import LLM, AsyncLLM, InvalidRequest, SamplingParams
from nanovllm.config import OFFLINE_MODEL, Config
from nanovllm.layers.rotary_embedding import RotaryEmbedding

from .checkpoints import greedy, reference

CONFIG = {  # but for the sizes of the network, which are made small
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 32, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
    "intermediate_size": 96, "max_position_embeddings": 40960, "max_window_layers": 2, "model_type": "qwen3",
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936}
GENERATION = {"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
              "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"}
THINKING = ("{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
            "<think>\n\n</think>\n\n{% endif %}{% endif %}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**CONFIG | {"initializer_range": 0.3})).save_pretrained(path)
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (path / "generation_config.json").write_text(json.dumps(GENERATION), encoding="utf-8")
    return path


def with_config(folder, target, **values):
    shutil.copytree(folder, target)
    (target / "config.json").write_text(json.dumps(CONFIG | values), encoding="utf-8")
    return target


def test_its_tokens_and_its_ends(folder):
    prompt = list(range(1000, 1040))
    expected = greedy(reference(folder), prompt, 12)
    with LLM(folder, device="cpu") as llm:
        assert llm.config.eos_token_ids == (151645, 151643) and llm.config.max_model_len == 4096
        assert llm.generate([prompt], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
                            use_tqdm=False)[0].token_ids == expected
    assert Config(folder, device="cpu", max_model_len=1 << 20).max_model_len == 40960


def test_without_parameters_the_models_own_hold_as_in_vllm(folder):
    with LLM(folder, device="cpu") as llm:
        found = llm.get_default_sampling_params()
        assert found == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
        assert llm.get_default_sampling_params() is not found
        silent, = llm._requests([[5, 6, 7]], None)
        assert silent.params.temperature == 0.6 and silent.params.top_k == 20
        mine, = llm._requests([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=4))
        assert mine.params.temperature == 0 and mine.params.top_k == SamplingParams().top_k, "what is passed counts alone"


def test_the_asynchronous_face_takes_them_too(folder, tmp_path):
    target = with_config(folder, tmp_path / "model")
    (target / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "temperature": 0.0}), encoding="utf-8")

    async def one():
        async with AsyncLLM(target, device="cpu") as llm:
            return await llm.generate([9, 8, 7])

    assert len(asyncio.run(one()).token_ids) == 3


def test_without_the_file_they_are_those_of_SamplingParams(folder, tmp_path):
    target = with_config(folder, tmp_path / "model")
    (target / "generation_config.json").unlink()
    with LLM(target, device="cpu") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()
        assert llm.config.eos_token_ids == (151645,)


def test_beyond_40960_with_yarn_as_its_card_says(folder, tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    target = with_config(folder, tmp_path / "model", rope_scaling=scaling)
    assert Config(target, device="cpu", max_model_len=1 << 20).max_model_len == 131_072
    prompt = list(range(500, 560))
    expected = greedy(reference(target), prompt, 8)
    with LLM(target, device="cpu", max_model_len=50_000, num_kvcache_blocks=3200) as llm:
        outputs = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)
    assert outputs[0].token_ids == expected


def test_every_position_beyond_40960_turns_as_in_transformers(folder, tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    target = with_config(folder, tmp_path / "model", rope_scaling=scaling)
    ours = RotaryEmbedding.from_config(Config(target, device="cpu", max_model_len=1 << 20).hf_config)
    theirs = Qwen3RotaryEmbedding(AutoConfig.from_pretrained(target))
    positions = torch.tensor([0, 1, 40_959, 40_960, 65_536, 100_001, 131_071])
    cos, sin = (table[0, :, :16] for table in theirs(torch.zeros(1, dtype=torch.float32), positions[None]))
    torch.testing.assert_close(ours.cos[positions], cos, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.sin[positions], sin, rtol=0, atol=1e-5)
    assert len(ours.cos) == 131_072


def test_thinking_is_turned_off_through_the_chat_template(tmp_path):
    target = tmp_path / "model"
    shutil.copytree(OFFLINE_MODEL, target)
    (target / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + THINKING, encoding="utf-8")
    chat = [{"role": "user", "content": "Hi"}]
    with LLM(target, device="cpu") as llm:
        assert all(llm.render_chat(chat, **on).endswith("assistant\n") for on in ({}, {"enable_thinking": True}))
        assert llm.render_chat(chat, enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("wanted", [500, 10_000])
def test_tokens_that_nobody_asked_for_are_cut_to_the_room_and_others_are_refused(folder, tmp_path, wanted):
    """A recommended max_new_tokens is no demand: vLLM, too, ends such a request where its context is full."""
    target = with_config(folder, tmp_path / "model")
    (target / "generation_config.json").write_text(json.dumps({"max_new_tokens": wanted, "temperature": 0.0,
                                                               "eos_token_id": []}), encoding="utf-8")
    prompts, settings = [[9, 8, 7], [6] * 30, [5] * 48], dict(device="cpu", kvcache_block_size=16, num_kvcache_blocks=3)

    async def asynchronous(llm):
        async with AsyncLLM(llm) as several:
            return [len((await several.generate(prompt)).token_ids) for prompt in prompts]

    with LLM(target, **settings) as llm:
        outputs = llm.generate(prompts, use_tqdm=False)
        assert [len(out.token_ids) for out in outputs] == [46, 19, 1]
        assert all(out.finish_reason == "length" for out in outputs)
        assert asyncio.run(asynchronous(llm)) == [46, 19, 1]
        for params in (llm.get_default_sampling_params(), SamplingParams(max_tokens=wanted)):
            with pytest.raises(InvalidRequest, match="lower max_tokens"):
                llm.generate(prompts, params, use_tqdm=False)
        with pytest.raises(InvalidRequest, match="at most 49 tokens"):
            llm.generate([[5] * 49], use_tqdm=False)  # a prompt is a demand
