"""Every tensor of a checkpoint has one place, and every place gets its tensor; anything else is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.loader import load_weights, random_weights

from ..checkpoints import random_checkpoint, reference

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = random_checkpoint(tmp_path_factory.mktemp("original"), num_hidden_layers=1, attention_bias=True)
    return load_file(folder / FILE), reference(folder).config


@pytest.fixture
def tensors(original):
    return dict(original[0])


@pytest.fixture
def load(original, tmp_path):
    """load(tensors) saves them as one file, unless None, and loads the folder into a fresh model."""

    def save_and_load(tensors=None, tp=TensorParallel(), dtype=torch.float32):
        if tensors is not None:
            save_file(tensors, tmp_path / FILE)
        model = Qwen3ForCausalLM(original[1], None, tp, device="cpu", dtype=dtype)
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        load_weights(model, tmp_path)
        return model

    return save_and_load


def test_every_parameter_is_filled_and_packed_in_order(load, tensors):
    model = load(tensors)
    assert not any(p.isnan().any() for p in model.parameters())
    layer, prefix = model.model.layers[0], "model.layers.0."
    for kind in ("weight", "bias"):
        parts = [tensors[f"{prefix}self_attn.{part}_proj.{kind}"] for part in "qkv"]
        assert torch.equal(getattr(layer.self_attn.qkv_proj, kind), torch.cat(parts))
    gate_up = [tensors[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up_proj.weight, torch.cat(gate_up))
    assert torch.equal(layer.self_attn.k_norm.weight, tensors[f"{prefix}self_attn.k_norm.weight"])


def test_each_rank_takes_its_share(load, tensors):
    whole, ranks = load(tensors), [load(tensors, TensorParallel(rank, 2)) for rank in range(2)]
    down = [m.model.layers[0].mlp.down_proj.weight for m in ranks]
    assert torch.equal(torch.cat(down, 1), whole.model.layers[0].mlp.down_proj.weight)
    table = [m.model.embed_tokens.weight for m in ranks]
    assert torch.equal(torch.cat(table), whole.model.embed_tokens.weight)
    assert not any(p.isnan().any() for m in ranks for p in m.parameters())


def test_tensors_are_cast_to_the_parameters_dtype(load, tensors):
    model = load(tensors, dtype=torch.bfloat16)
    assert torch.equal(model.model.norm.weight, tensors["model.norm.weight"].bfloat16())


def test_a_sharded_index_is_followed(load, tensors, tmp_path):
    names = sorted(tensors)
    where = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    save_file({"left.over": torch.zeros(1)}, tmp_path / "old.safetensors")  # the index does not name it: not ours
    assert not any(p.isnan().any() for p in load().parameters())
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"part-1\.safetensors.*missing.*download"):
        load()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_broken_index_is_named(load, tmp_path, content):
    (tmp_path / INDEX).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json.*(copy|download)"):
        load()


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.bias",
                                  "model.norm.weight", "model.embed_tokens.weight"])
def test_a_missing_tensor_is_named_defect_21(load, tensors, name):
    del tensors[name]
    with pytest.raises(ValueError, match=rf"1 tensors? (is|are) missing.*{name}"):
        load(tensors)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.scales",
                                  "visual.weight", "weight"])
def test_an_extra_tensor_is_named(load, tensors, name):
    with pytest.raises(ValueError, match=rf"unexpected tensor '{name}'"):
        load(tensors | {name: torch.zeros(2, 2)})


@pytest.mark.parametrize(("name", "shape"), [
    ("model.layers.0.self_attn.k_proj.weight", (32, 64)), ("model.layers.0.mlp.down_proj.weight", (64, 95)),
    ("model.norm.weight", (65,)), ("model.norm.weight", (1,)), ("model.layers.0.self_attn.q_proj.bias", (1,)),
    ("model.embed_tokens.weight", (97, 64)), ("model.embed_tokens.weight", (95, 64)),
    ("model.layers.0.mlp.gate_proj.weight", (192, 64)),
])
def test_a_misshapen_tensor_is_named_with_both_shapes(load, tensors, name, shape):
    with pytest.raises(ValueError) as caught:
        load(tensors | {name: torch.zeros(shape)})
    assert name in str(caught.value) and str(list(shape)) in str(caught.value)
    assert str(list(tensors[name].shape)) in str(caught.value)


def test_a_second_copy_of_the_tied_head_is_passed_over(load, tensors):
    model = load(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_a_truncated_file_is_named_with_the_remedy(load, tensors, tmp_path, keep):
    save_file(tensors, tmp_path / FILE)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a complete safetensors file.*again"):
        load()


def test_a_folder_without_weights_is_named(load, tmp_path):
    with pytest.raises(ValueError, match=r"no \*\.safetensors files"):
        load()


def test_random_weights_leave_nothing_as_it_was_and_touch_no_global(original, tmp_path):
    state = torch.get_rng_state()
    models = [Qwen3ForCausalLM(original[1], None, device="cpu", dtype=torch.float32) for _ in range(2)]
    for model in models:
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        random_weights(model)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b) and (a.ndim == 1 or abs(float(a.std()) - 0.02) < 0.002), name
    assert torch.equal(state, torch.get_rng_state())


def test_a_dummy_model_needs_no_weights_on_disk(original, tmp_path):
    from nanovllm import LLM, SamplingParams
    original[1].save_pretrained(tmp_path)
    with LLM(tmp_path, device="cpu", load_format="dummy") as llm:
        out, = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=5, ignore_eos=True), use_tqdm=False)
    assert len(out.token_ids) == 5
