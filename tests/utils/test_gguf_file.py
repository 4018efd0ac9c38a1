"""GGUF files: the same logits as transformers reads from them, and every broken or foreign one refused by name."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nanovllm import LLM, SamplingParams
from nanovllm.config import Config, load_hf_config
from nanovllm.errors import CheckpointError
from nanovllm.utils.gguf_file import TYPES

from ..checkpoints import greedy, random_checkpoint
from ..models.paged import Cache, error, our_model
from .gguf_files import write_gguf

SHAPE = dict(hidden_size=256, intermediate_size=256, head_dim=64)  # blocks of 256 numbers must come out even


def checkpoint(folder, family="Llama", **overrides):
    return random_checkpoint(folder, family=family, **SHAPE | overrides)


def theirs(file):
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize(("family", "kind"), [*(("Llama", kind) for kind in TYPES), ("Qwen2", "F16"), ("Qwen2", "Q8_0"),
                                              ("Qwen3", "BF16"), ("Qwen3", "Q4_K")])
def test_logits_equal_transformers(family, kind, tmp_path):
    # transformers takes 128 for the head_dim of any qwen3 file
    shape = {"head_dim": 128} if family == "Qwen3" else {"tie_word_embeddings": family != "Qwen2"}
    file = write_gguf(checkpoint(tmp_path / "folder", family, **shape), family, tmp_path / "model.gguf", kind)
    ids = list(range(60))
    found, = Cache(load_hf_config(file), 1).run(our_model(file), [(0, ids, 0)])
    with torch.inference_mode():
        expected = theirs(file)(torch.tensor([ids])).logits[0]
    assert error(found, expected) < 1e-4


def test_greedy_tokens_equal_transformers(tmp_path):
    file = write_gguf(checkpoint(tmp_path / "folder"), "Llama", tmp_path / "model.gguf", "Q8_0")
    prompts, model = [list(range(n, 2 * n + 1)) for n in (3, 20, 40)], theirs(file)
    with LLM(str(file), device="cpu") as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), use_tqdm=False)
    assert [o.token_ids for o in outputs] == [greedy(model, prompt, 12) for prompt in prompts]


def test_two_ranks_read_one_file(tmp_path):
    file = write_gguf(checkpoint(tmp_path / "folder"), "Llama", tmp_path / "model.gguf", "Q4_1")
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    texts = []
    for size in (1, 2):
        with LLM(file, device="cpu", tensor_parallel_size=size) as llm:
            texts.append(llm.generate([[1, 2, 3]], params, use_tqdm=False)[0].token_ids)
    assert texts[0] == texts[1]


def test_a_file_that_writes_out_what_divides_the_frequencies(tmp_path):
    """As files of Llama 3 do; the same numbers as llama3 scaling in a config.json."""
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64}
    folder = checkpoint(tmp_path / "folder", rope_parameters=llama3)
    model = our_model(folder)
    plain = 1e4 ** (-torch.arange(0, 64, 2) / 64)
    frequencies = model.model.layers[0].self_attn.rotary.frequencies
    file = write_gguf(folder, "Llama", tmp_path / "model.gguf")
    reader = gguf.GGUFReader(file)
    other = gguf.GGUFWriter(tmp_path / "with.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            other.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        other.add_tensor(tensor.name, tensor.data)
    other.add_tensor("rope_freqs.weight", (plain / frequencies).numpy().astype(np.float32))
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    ids = list(range(90))
    expected, = Cache(load_hf_config(folder), 1, 24).run(model, [(0, ids, 0)])
    found, = Cache(load_hf_config(folder), 1, 24).run(our_model(tmp_path / "with.gguf"), [(0, ids, 0)])
    without, = Cache(load_hf_config(folder), 1, 24).run(our_model(file), [(0, ids, 0)])
    assert error(found, expected) < 1e-4 < error(without, expected)


def test_a_truncated_file_names_where_it_ends(tmp_path):
    file = write_gguf(checkpoint(tmp_path / "folder"), "Llama", tmp_path / "model.gguf")
    whole = file.read_bytes()
    first = gguf.GGUFReader(file).tensors
    for size, message in ((2, "first bytes"), (40, "GGUF.kv_count"), (300, "key 'llama\\."),
                          (int(first[5].data_offset) + 10, f"tensor '{first[5].name}'"), (len(whole) - 1000, "tensor ")):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=f"cut.gguf: not a complete GGUF file.*{message}"):
            Config(tmp_path / "cut.gguf", device="cpu")


def test_foreign_files_are_refused_by_name(tmp_path):
    folder = checkpoint(tmp_path / "folder")
    (tmp_path / "text.gguf").write_text("no such thing " * 100, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"text.gguf: not a complete GGUF file.*magic"):
        Config(tmp_path / "text.gguf", device="cpu")
    with pytest.raises(CheckpointError, match=r"gone.gguf.*must be a GGUF file that is there"):
        Config(tmp_path / "gone.gguf", device="cpu")
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"general.architecture='mamba': must be one of llama, qwen2, qwen3"):
        Config(tmp_path / "mamba.gguf", device="cpu")
    writer = gguf.GGUFWriter(tmp_path / "short.gguf", "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"key llama.context_length is missing"):
        Config(tmp_path / "short.gguf", device="cpu")
    half = write_gguf(folder, "Llama", tmp_path / "half.gguf", **{"llama.rope.dimension_count_": 1})
    Config(half, device="cpu")  # keys that nobody knows do no harm
    scaled = write_gguf(folder, "Llama", tmp_path / "scaled.gguf", **{"llama.rope.scaling.type": "longrope",
                                                                      "llama.rope.scaling.factor": 2.0})
    with pytest.raises(CheckpointError, match="rope_type='longrope'"):
        Config(scaled, device="cpu")


def test_a_tensor_too_many_or_in_an_unknown_format_is_named(tmp_path):
    folder, file = checkpoint(tmp_path / "folder"), tmp_path / "model.gguf"
    for name, dtype, message in (("blk.0.ssm_in.weight", None, "unexpected tensor 'blk.0.ssm_in.weight'"),
                                 ("output_norm.bias", "I8", "'output_norm.bias' is stored as I8")):
        write_gguf(folder, "Llama", file)
        reader, other = gguf.GGUFReader(file), gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
        for key, field in reader.fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                other.add_key_value(key, field.contents(), field.types[0])
        for tensor in reader.tensors:
            other.add_tensor(tensor.name, tensor.data)
        other.add_tensor(name, np.zeros(8, np.int8 if dtype else np.float32))
        other.write_header_to_file()
        other.write_kv_data_to_file()
        other.write_tensors_to_file()
        other.close()
        with pytest.raises(CheckpointError, match=message):
            our_model(tmp_path / "other.gguf")


def rewritten(file, target, keys=(), without=(), tensors=(), types=()):
    """The file with other keys and tensors. keys: whole names; None takes one away. types: of tensors stored as zeros."""
    reader, keys, types = gguf.GGUFReader(file), dict(keys), dict(types)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in keys:
            writer.add_key_value(key, field.contents(), field.types[0])
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        if tensor.name in types:
            kind = gguf.GGMLQuantizationType[types[tensor.name]]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            zeros = np.zeros((int(tensor.shape[1]), int(tensor.shape[0]) // block * size), np.uint8)
            writer.add_tensor(tensor.name, zeros, raw_dtype=kind)
        elif tensor.name not in without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in dict(tensors).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(checkpoint(folder / "folder"), "Llama", folder / "model.gguf", "Q4_0")


COUNTS = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
          "attention.head_count_kv", "attention.key_length", "rope.dimension_count")


@pytest.mark.parametrize("changes, message", [
    *((dict(keys={f"llama.{key}": value}), rf"llama\.{key}=.*must be a whole number, 1 or more") for key, value in zip(
        COUNTS, ("2", 0, [64, 64], 2.5, 0, [2, 1], True, "x"))),
    (dict(keys={"llama.attention.layer_norm_rms_epsilon": "x"}), "rms_norm_eps='x'"),
    (dict(keys={"llama.rope.freq_base": 0.0}), "rope_theta=0.0"),
    (dict(keys={"llama.attention.head_count_kv": 3}), "num_attention_heads=4: must be a multiple"),
    (dict(keys={"llama.expert_count": 8}), "llama.expert_count=8: must be absent or 0"),  # Mixtral's architecture is llama, too
    (dict(keys={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0, "llama.rope.scaling.attn_factor": 3.0}),
     "attn_factor=3.0"),
    (dict(keys={"llama.rope.scaling.type": "linear"}), "factor.*=None: must be a number above 0"),
    (dict(keys={"general.type": "adapter"}), "general.type='adapter'.*LoRA"),
    (dict(keys={"split.count": 3}), "split.count=3.*llama-gguf-split --merge"),
    (dict(keys={"tokenizer.ggml.eos_token_id": "2"}), r"eos_token_id=\['2'\]"),
    (dict(tensors={"blk.0.ffn_gate_inp.weight": np.zeros((8, 256), np.float32)}), "unexpected tensor 'blk.0.ffn_gate_inp"),
    (dict(types={"blk.1.ffn_up.weight": "IQ4_NL"}), "'blk.1.ffn_up.weight' is stored as IQ4_NL"),
])
def test_what_a_file_cannot_mean_is_named_before_memory_is_taken(plain_file, tmp_path, changes, message):
    file = rewritten(plain_file, tmp_path / "other.gguf", **changes)
    with pytest.raises(CheckpointError, match=message):
        Config(file, device="cpu")


def test_what_asks_for_nothing_is_no_reason_to_refuse(plain_file, tmp_path):
    file = rewritten(plain_file, tmp_path / "other.gguf", keys={
        "llama.expert_count": 0, "general.type": "model", "split.count": 1, "llama.rope.scaling.type": "none",
        "llama.attention.head_count_kv": 2, "llama.vocab_size": 96})
    assert Config(file, device="cpu").hf_config.num_key_value_heads == 2


@pytest.mark.parametrize("without", ["token_embd.weight", "blk.1.attn_k.weight", "output_norm.weight"])
def test_a_tensor_that_lacks_is_named(plain_file, tmp_path, without):
    file = rewritten(plain_file, tmp_path / "other.gguf", without=[without])
    with pytest.raises(CheckpointError, match=r"vocab_size=0|layers\.1\.self_attn\.k_proj|model\.norm"):
        our_model(file)


def test_wherever_a_file_ends_or_a_byte_is_wrong_the_error_is_ours(plain_file, tmp_path):
    whole, rng = plain_file.read_bytes(), np.random.default_rng(0)
    for size in rng.integers(0, len(whole), 40).tolist():
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut.gguf: not a complete GGUF file.*(first bytes|key|tensor)"):
            Config(tmp_path / "cut.gguf", device="cpu")
    for at in rng.integers(0, 2500, 150).tolist():
        changed = bytearray(whole)
        changed[at] = int(rng.integers(256))
        (tmp_path / "wrong.gguf").write_bytes(changed)
        try:
            Config(tmp_path / "wrong.gguf", device="cpu")
        except CheckpointError as error:
            assert "wrong.gguf" in str(error) or "rope" in str(error), error
