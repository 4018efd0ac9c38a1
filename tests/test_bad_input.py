"""Each bad input: a ValueError that names value, limit and remedy, raised before anything is queued."""

import json
import shutil

import pytest

from nanovllm import LLM, SamplingParams

from .checkpoints import random_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=64)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu", kvcache_block_size=4, num_kvcache_blocks=8) as llm:
        yield llm


def prompts_with(bad):
    return [[1, 2, 3], bad, [4, 5]]


@pytest.mark.parametrize("bad, params, message", [
    ([], {}, "prompt length=0: must be at least 1 token"),
    ([1, 96], {}, r"token id=96: must be a whole number in \[0, 96\)"),
    ([1, -1], {}, "token id=-1"),
    ([1, "2"], {}, "token id='2'"),
    ([1], dict(logit_bias={96: 1}), "token id=96"),
    ([1] * 64, {}, "prompt length=64: must be below max_model_len=64 tokens; shorten the prompt or raise max_model_len"),
    ([1] * 30, dict(max_tokens=20), r"prompt \+ max_tokens=50: must be at most 33 tokens.*raise num_kvcache_blocks"),
    ("hello", {}, "tokenizer.json for a text prompt"),
    ("", {}, "prompt='': must be at least one character"),
])
def test_a_bad_prompt_harms_no_other(llm, bad, params, message):
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts_with(bad), SamplingParams(temperature=0, **{"max_tokens": 4} | params), use_tqdm=False)
    assert not llm.engine.has_unfinished
    llm.engine.check_integrity()
    assert len(llm.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)[0].token_ids) == 3


def test_one_text_is_one_prompt_and_lists_must_match_defect_10(llm):
    with pytest.raises(ValueError, match="wrap one prompt's token ids"):
        llm.generate([1, 2, 3])
    with pytest.raises(ValueError, match=r"len\(sampling_params\)=1: must be 2"):
        llm.generate([[1], [2]], [SamplingParams()])
    with pytest.raises(ValueError, match="prompts=7"):
        llm.generate(7)


@pytest.mark.parametrize("fields, message", [
    (dict(temperature=-0.1), "temperature=-0.1"), (dict(temperature=float("nan")), "temperature=nan"),
    (dict(temperature=float("inf")), "temperature=inf"),
    (dict(max_tokens=0), "max_tokens=0: must be a whole number, 1 or more"), (dict(max_tokens=2.5), "max_tokens=2.5"),
    (dict(top_p=0), "top_p=0"), (dict(top_p=1.1), "top_p=1.1"), (dict(top_k=-2), "top_k=-2"), (dict(min_p=2), "min_p=2"),
    (dict(seed=-1), "seed=-1"), (dict(stop_token_ids=["a"]), "stop_token_ids"),
    (dict(max_token=5), "did you mean 'max_tokens'"),
    (dict(stop=[""]), "stop="), (dict(stop=5), "stop=5: must be a list"), (dict(stop=["a", 5]), "stop="),
    (dict(stop_token_ids=5), "stop_token_ids=5: must be a list"), (dict(n=0), "n=0"),
    (dict(n=2, temperature=0), "n=2: must be 1 with temperature 0"), (dict(min_tokens=-1), "min_tokens=-1"),
    (dict(min_tokens=9, max_tokens=8), "min_tokens=9: must be a whole number from 0 to max_tokens=8"),
    (dict(repetition_penalty=0), "repetition_penalty=0: must be a finite number above 0"),
    (dict(presence_penalty=2.1), r"presence_penalty=2.1: must be in \[-2, 2\]"),
    (dict(frequency_penalty="1"), "frequency_penalty='1'"),
    (dict(logit_bias=[1]), r"logit_bias=\[1\]: must be a dict"), (dict(logit_bias={"1": 1}), "logit_bias token='1'"),
    (dict(logit_bias={3: 101}), r"logit_bias\[3\]=101: must be in \[-100, 100\]"), (dict(logprobs=21), "logprobs=21"),
    (dict(logprobs=True), "logprobs=True"), (dict(prompt_logprobs=-1), "prompt_logprobs=-1"),
    (dict(skip_special_tokens=1), "skip_special_tokens=1"), (dict(include_stop_str_in_output=None), "include_stop_str"),
])
def test_nonsense_sampling_params(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**fields)


@pytest.mark.parametrize("settings, message", [
    (dict(max_model_length=5), "did you mean 'max_model_len'"),
    (dict(max_num_seqs=0), "max_num_seqs=0"), (dict(gpu_memory_utilization=1.5), "gpu_memory_utilization=1.5"),
    (dict(kvcache_block_size=0), "kvcache_block_size=0"), (dict(attention_backend="fast"), "attention_backend='fast'"),
    (dict(device="tpu0"), "device='tpu0'"), (dict(dtype="int8"), "dtype='int8'"),
    (dict(tensor_parallel_size=3), "tensor_parallel_size=3"), (dict(worker_timeout=0), "worker_timeout=0"),
    (dict(load_format="npz"), "load_format='npz'"),
])
def test_nonsense_settings(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        LLM(folder, **{"device": "cpu"} | settings)


def test_folders_that_hold_no_model_we_can_run(folder, tmp_path):
    with pytest.raises(ValueError, match="must be a folder in Hugging Face format"):
        LLM(tmp_path / "absent", device="cpu")
    with pytest.raises(ValueError, match=r"config\.json"):
        LLM(tmp_path, device="cpu")
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"architectures=\['GPT2LMHeadModel'\]"):
        LLM(other, device="cpu")
    empty = shutil.copytree(folder, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors*"))
    with pytest.raises(ValueError, match="safetensors weights"):
        LLM(empty, device="cpu")


def test_validation_survives_python_O_defect_7():
    import subprocess
    import sys
    code = "from nanovllm import SamplingParams\ntry: SamplingParams(max_tokens=0)\nexcept ValueError: raise SystemExit(7)"
    assert subprocess.run([sys.executable, "-O", "-c", code]).returncode == 7
