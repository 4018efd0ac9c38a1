"""GGUF files made of the random checkpoints of `tests/checkpoints.py`, as llama.cpp's converter writes them."""

from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

from nanovllm.config import load_hf_config
from nanovllm.utils.gguf_file import LAYER_MODULES, MODULES

KINDS = {"Llama": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3"}
# Formats that the package can dequantise but not quantise: random blocks, with their scales made small float16 numbers.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def encoded(values: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of a matrix in a format."""
    qtype = gguf.GGMLQuantizationType[kind]
    if kind not in SCALES:
        return gguf.quantize(values, qtype)
    size, stored = gguf.GGML_QUANT_SIZES[qtype]
    rows, columns = values.shape
    blocks = np.random.default_rng(values.size).integers(0, 256, (rows, columns // size, stored), np.uint8)
    for at in SCALES[kind]:
        blocks[..., at:at + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def write_gguf(folder: Path, family: str, file: Path, kind: str = "F32", **keys) -> Path:
    """The checkpoint in `folder` as one file; matrices in format `kind`, norms and biases in F32. keys: more key-values."""
    config, architecture = load_hf_config(folder), KINDS[family]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in keys.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    names = {theirs: ours for ours, theirs in (MODULES | LAYER_MODULES).items()}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, _, last = name.rpartition(".")
        values = tensor.float().numpy()
        if module.startswith("model.layers."):
            number, inner = module.removeprefix("model.layers.").split(".", 1)
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(inner)
            if heads and architecture == "llama":  # halves of a head to neighbouring rows
                halves = values.reshape(heads, 2, config.head_dim // 2, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
            name = f"blk.{number}.{names[inner]}.{last}"
        else:
            name = f"{names[module]}.{last}"
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, encoded(values, kind), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
