"""Checkpoint folders as they lie on people's disks: each works as in transformers, or is refused by what is wrong with it."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanovllm import LLM, SamplingParams
from nanovllm.config import Config
from nanovllm.errors import CheckpointError
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.loader import load_weights

from .checkpoints import greedy, random_checkpoint, reference

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PROMPT = [5, 17, 60, 3, 22]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def weights(folder):
    return load_file(folder / WHOLE)


def save(folder, tensors, name=WHOLE):
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata={"format": "pt"})


def write_index(folder, names, file):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file)}), encoding="utf-8")


def edit(folder, changes, file="config.json"):
    path = folder / file
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(values | changes), encoding="utf-8")


def answer(folder, num_tokens=12, **settings):
    with LLM(folder, device="cpu", **settings) as llm:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        return llm.generate([PROMPT], params, use_tqdm=False)[0].token_ids


def check_answers_as_transformers(folder):
    assert answer(folder) == greedy(reference(folder), PROMPT, 12)


def check_refused(folder, match, **settings):
    with pytest.raises(CheckpointError, match=match):
        LLM(folder, device="cpu", **settings)


# Which files of a folder are the model.

def test_an_index_that_names_other_weights_beside_a_whole_model_is_refused_by_both_names(folder, weights):
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    save(folder, other, "old.safetensors")
    write_index(folder, other, "old.safetensors")
    check_refused(folder, r"twice: model\.safetensors is one, and model.* names another, old\.safetensors")


@pytest.mark.parametrize("named", [WHOLE, "model-00001-of-00002.safetensors"])
def test_an_index_beside_a_whole_model_that_names_it_or_files_long_gone_does_no_harm(folder, weights, named):
    write_index(folder, weights, named)
    check_answers_as_transformers(folder)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "consolidated-00001.safetensors", "adapter_model.safetensors",
                                  "optimizer.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors"])
def test_other_files_beside_a_whole_model_are_not_read(folder, weights, name):
    save(folder, {key: torch.zeros_like(value) for key, value in weights.items()}, name)
    check_answers_as_transformers(folder)


def test_shards_are_read_by_their_index_whatever_else_lies_there(folder, weights):
    names = sorted(weights)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save(folder, {name: weights[name] for name in names if where[name] == file}, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    expected = greedy(reference(folder), PROMPT, 12)
    (folder / WHOLE).unlink()
    save(folder, weights, "consolidated.safetensors")
    check_answers_as_transformers(folder)
    (folder / INDEX).unlink()  # transformers finds nothing any more; vLLM reads all shards
    assert answer(folder) == expected
    (folder / files[1]).unlink()
    check_refused(folder, "tensors are missing")


def test_a_model_under_another_name_is_still_the_only_one_there(folder, weights):
    (folder / WHOLE).rename(folder / "weights.safetensors")
    save(folder, {"x": torch.zeros(1)}, "adapter_model.safetensors")
    save_as = answer(folder)
    (folder / "weights.safetensors").rename(folder / WHOLE)
    assert save_as == greedy(reference(folder), PROMPT, 12)
    shutil.copy(folder / WHOLE, folder / "model.fp16.safetensors")
    (folder / WHOLE).rename(folder / "model.bf16.safetensors")
    check_refused(folder, r"model\.fp16\.safetensors: tensor .* is there twice")


@pytest.mark.parametrize("name", ["consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_files_that_are_no_model_we_read_are_named(folder, name):
    (folder / WHOLE).rename(folder / name)
    check_refused(folder, rf"no \*\.safetensors files.*{name} is not that.*safetensors weights")


def test_an_adapter_is_called_one(folder):
    for file in folder.iterdir():
        file.unlink()
    edit(folder, {"peft_type": "LORA"}, "adapter_config.json")
    save(folder, {"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, "adapter_model.safetensors")
    check_refused(folder, "holds an adapter .LoRA.*merge it into its base model")


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere/model.safetensors", "sub/model.safetensors"])
def test_an_index_names_files_beside_it_only(folder, weights, name):
    (folder / WHOLE).rename(folder / "part.safetensors")
    write_index(folder, weights, name)
    check_refused(folder, "must be a file beside it")


# Names of tensors, and tying.

def test_a_base_models_names_lack_the_prefix(folder, weights):
    save(folder, {name.removeprefix("model."): tensor for name, tensor in weights.items()})
    check_answers_as_transformers(folder)


def test_names_with_one_prefix_more_are_known_too(folder, weights):
    save(folder, {f"model.{name}": tensor for name, tensor in weights.items()})
    check_answers_as_transformers(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "transformer."])
def test_names_that_transformers_would_not_know_are_refused(folder, weights, prefix):
    save(folder, {f"{prefix}{name}": tensor for name, tensor in weights.items()})
    check_refused(folder, rf"unexpected tensor '{prefix}model")


def test_another_head_than_the_embedding_is_used_although_config_json_ties_them(folder, weights):
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].roll(1, 0)
    tied = answer(folder)
    save(folder, weights)
    assert reference(folder).lm_head.weight.data_ptr() != reference(folder).model.embed_tokens.weight.data_ptr()
    check_answers_as_transformers(folder)
    assert answer(folder) != tied


def test_the_same_head_once_more_stays_tied(folder, weights):
    save(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    check_answers_as_transformers(folder)
    model = loaded(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_alone_is_the_embedding_of_a_tied_model_too(folder, weights):
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save(folder, weights)
    check_answers_as_transformers(folder)


def test_each_rank_takes_its_share_of_another_head(folder, weights):
    weights["lm_head.weight"] = head = weights["model.embed_tokens.weight"].clone()
    head[-1] += 1  # the first rank's share is the same
    save(folder, weights)
    ranks = [loaded(folder, TensorParallel(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat([model.lm_head.weight for model in ranks]), head)
    assert [model.lm_head.weight is model.model.embed_tokens.weight for model in ranks] == [True, False]


def loaded(folder, tp=TensorParallel()):
    config = Config(folder, device="cpu").hf_config
    model = Qwen3ForCausalLM(config, None, tp, device="cpu", dtype=torch.float32)
    load_weights(model, folder)
    return model


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
                                  "rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.cos_cached"])
def test_buffers_that_are_computed_anew_are_passed_over(folder, weights, name):
    save(folder, weights | {name: torch.ones(16)})
    check_answers_as_transformers(folder)


# Quantized weights.

@pytest.mark.parametrize("said, name", [
    ({"quant_method": "awq", "bits": 4}, "awq"), ({"quant_method": "gptq"}, "gptq"), ({"quant_method": "fp8"}, "fp8"),
    ({"load_in_4bit": True}, "bitsandbytes"), ({"quant_method": "compressed-tensors"}, "compressed-tensors"), ({}, "unnamed")])
def test_a_quantized_folder_is_refused_by_its_methods_name(folder, said, name):
    edit(folder, {"quantization_config": said})
    check_refused(folder, rf"quantized \({name}\)")


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_quantized_folder_is_known_by_the_file_that_its_tool_leaves(folder, file):
    edit(folder, {"bits": 4}, file)
    check_refused(folder, rf"quantized \({file}\)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool,
                                   torch.complex64])
def test_tensors_that_are_no_plain_numbers_are_never_cast(folder, weights, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    save(folder, weights | {name: weights[name].to(dtype)})
    check_refused(folder, rf"{name}' is stored as {str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_plain_numbers_of_any_width_are_cast(folder, weights, dtype):
    save(folder, {name: tensor.to(dtype) for name, tensor in weights.items()})
    check_answers_as_transformers(folder)


# Files that are not what they should be.

FILES = ("config.json", "generation_config.json", INDEX)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe{}", b"[" * 100_000],
                         ids=["empty", "cut", "list", "null", "text", "utf-16", "deep"])
@pytest.mark.parametrize("file", FILES)
def test_a_file_without_a_json_object_is_named(folder, file, content):
    if file == INDEX:
        (folder / WHOLE).rename(folder / "part.safetensors")
    (folder / file).write_bytes(content)
    check_refused(folder, rf"{file}.*again")


@pytest.mark.parametrize("file", FILES[:2])
def test_a_byte_order_mark_is_no_part_of_the_file(folder, file):
    path = folder / file
    edit(folder, {"temperature": 0.0, "max_new_tokens": 5}, "generation_config.json")
    expected = answer(folder)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert answer(folder) == expected
    with LLM(folder, device="cpu") as llm:  # nor of what is recommended there to those who do not say
        assert llm.generate([PROMPT], use_tqdm=False)[0].token_ids == expected[:5]


@pytest.mark.parametrize("changes, match", [
    ({"vocab_size": "96"}, "vocab_size='96'"), ({"hidden_size": 64.0}, r"hidden_size=64\.0"),
    ({"num_hidden_layers": -1}, "num_hidden_layers=-1"), ({"head_dim": True}, "head_dim=True"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"), ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'"),
    ({"dtype": "int8"}, "dtype='int8'"), ({"dtype": {"text": "float32"}}, "dtype="), ({"dtype": "fp8"}, "dtype='fp8'"),
    ({"hidden_size": None}, "without hidden_size"), ({"eos_token_id": "2"}, r"eos_token_id=\['2'\]"),
    ({"eos_token_id": [True]}, r"eos_token_id=\[True\]"), ({"eos_token_id": 2.0}, r"eos_token_id=\[2\.0\]")])
def test_a_value_that_means_nothing_is_named_with_its_file(folder, changes, match):
    edit(folder, {"eos_token_id": None}, "generation_config.json")
    edit(folder, changes)
    with pytest.raises(ValueError, match=match) as caught:
        LLM(folder, device="cpu")
    assert "config.json" in str(caught.value)


def test_null_is_as_good_as_nothing(tmp_path):
    folder = random_checkpoint(tmp_path / "model", head_dim=128, num_key_value_heads=4)
    expected = greedy(reference(folder), PROMPT, 12)
    edit(folder, dict.fromkeys(("head_dim", "rms_norm_eps", "num_key_value_heads", "dtype", "attention_bias", "hidden_act",
                                "sliding_window", "rope_scaling", "quantization_config", "eos_token_id")))
    assert answer(folder) == expected


@pytest.mark.parametrize("name", ["bf16", "torch.bfloat16", "half", "fp32", "float64"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtypes_are_known_by_their_other_names(folder, key, name):
    expected = answer(folder)
    edit(folder, {"dtype": None, key: name})
    assert answer(folder) == expected
    names = {"bf16": torch.bfloat16, "torch.bfloat16": torch.bfloat16, "half": torch.float16}
    assert Config(folder, device="cpu").hf_config.dtype is names.get(name, torch.float32)


# End tokens.

def test_end_tokens_outside_the_vocabulary_are_left_out_with_a_warning_and_end_nobodys_step(folder):
    edit(folder, {"eos_token_id": [7, 151645]}, "generation_config.json")
    with pytest.warns(UserWarning, match=r"generation_config\.json: eos_token_id \[151645\] is outside the vocabulary of 96"):
        llm = LLM(folder, device="cpu")
    with llm:
        params = [SamplingParams(temperature=0, max_tokens=4, min_tokens=2), SamplingParams(temperature=0, max_tokens=4)]
        outputs = llm.generate([PROMPT, PROMPT], params, use_tqdm=False)
    assert llm.config.eos_token_ids == (7,) and all(output.token_ids for output in outputs)


@pytest.mark.parametrize("config, generation, expected", [
    (5, {}, (5,)), (5, {"eos_token_id": None}, (5,)), (5, {"eos_token_id": 6}, (6,)), ([5, 6, 5], {}, (5, 6)), (None, {}, ()),
    (5, {"eos_token_id": []}, ()), (0, {}, (0,))])
def test_generation_config_json_has_the_first_word_about_end_tokens(folder, config, generation, expected):
    edit(folder, {"eos_token_id": config})
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    assert Config(folder, device="cpu").eos_token_ids == expected


# Paths.

def test_the_working_directory_has_its_folders_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for path in (".", "", f"../{folder.name}", "./"):
        if path == "":
            with pytest.raises(ValueError, match="model=''"):
                LLM(path, device="cpu")
            continue
        with LLM(path, device="cpu") as llm:
            assert llm.config.model.name == folder.name and repr(llm).startswith(f"LLM({folder.name},")
    (folder / "deep").mkdir()
    monkeypatch.chdir(folder / "deep")
    config = Config("..", device="cpu")
    monkeypatch.chdir("/")
    assert config.model.name == folder.name and config.model.is_dir()


@pytest.mark.parametrize("name", ["with a space", "模型 🦊", "naïve", "a'b\"c", "-x", "%s{0}", "x.safetensors", "x.gguf"])
def test_folders_of_any_name(original, tmp_path, name):
    folder = shutil.copytree(original, tmp_path / name / name)
    with LLM(str(folder), device="cpu") as llm:
        assert llm.config.model.name == name
        llm.generate([PROMPT], SamplingParams(max_tokens=2), use_tqdm=False)


def test_a_link_keeps_its_own_name_and_links_inside_are_followed(original, tmp_path):
    """As the cache of huggingface_hub lies: every file is a link to a blob of another name."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    shutil.copytree(original, blobs)
    for i, file in enumerate(sorted(blobs.iterdir())):
        os.symlink(file.rename(blobs / f"{i:064x}"), snapshot / file.name)
    os.symlink(snapshot, tmp_path / "current")
    check_answers_as_transformers(tmp_path / "current")
    assert Config(tmp_path / "current", device="cpu").model.name == "current"
    (snapshot / WHOLE).unlink()
    os.symlink(tmp_path / "gone", snapshot / WHOLE)
    check_refused(tmp_path / "current", "model.safetensors")


@pytest.mark.parametrize("model", [5, b"folder", ["a"], "~nobody-of-this-name/model", "a\0b", "Qwen/Qwen3-0.6B", "x" * 999])
def test_what_is_no_folder_is_named(model):
    with pytest.raises(ValueError, match="model="):
        LLM(model, device="cpu")
