"""A checkpoint as it lies on a disk: which files of its folder are the model, and what stands in them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanovllm.errors import CheckpointError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Left behind by other tools, and no part of the model in Hugging Face format: Mistral's own copy of the weights, and what
# was trained beside them (LoRA, optimizers).
NOT_THE_MODEL = re.compile(r"(consolidated|adapter|optimizer|training_args|scheduler)[._\-\d]*.*\.safetensors")
# How quantized checkpoints say what they are when config.json does not: AutoGPTQ, AutoAWQ, ModelOpt.
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file, which some editors begin with a byte order mark. Raises CheckpointError naming the file."""
    try:
        values = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({type(error).__name__}: {error}); "
                              "copy or download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds a JSON {type(values).__name__}: must be an object; copy or download it again.")
    return values


def quantization_method(folder: Path, config: dict[str, Any]) -> str | None:
    """What the weights were quantized with, by its name in config.json or by the file it leaves; None for plain weights."""
    said = config.get("quantization_config", config.get("compression_config"))
    if said is None:
        return next((file for file in QUANTIZATION_FILES if (folder / file).is_file()), None)
    method = said.get("quant_method") if isinstance(said, dict) else None
    if method is None and isinstance(said, dict) and (said.get("load_in_4bit") or said.get("load_in_8bit")):
        method = "bitsandbytes"
    return str(method or "unnamed")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model, as transformers chooses them: model.safetensors, else what the index names.

    Without either, all other *.safetensors files but those that are known to hold something else. Raises CheckpointError
    when there are none, when one that the index names is missing, and when model.safetensors and the index both claim to
    be the model: transformers would then take the first and vLLM the second, and nobody can tell which is stale.
    """
    whole, index = folder / WHOLE, folder / INDEX
    named = _named_by(index) if index.is_file() else []
    if whole.is_file():
        others = [file.name for file in named if file != whole and file.is_file()]
        if others:
            raise CheckpointError(f"{folder}: holds the model twice: {WHOLE} is one, and {INDEX} names another, {others[0]}"
                                  f"{' and more' if others[1:] else ''}; move away the one that is out of date.")
        return [whole]
    for file in named:
        if not file.is_file():
            raise CheckpointError(f"{file}: the index names this file, but it is missing; copy or download it.")
    if named:
        return named
    files = sorted(file for file in folder.glob("*.safetensors") if not NOT_THE_MODEL.fullmatch(file.name))
    if not files:
        left = sorted(file.name for pattern in ("*.safetensors", "*.bin", "*.pth", "*.gguf") for file in folder.glob(pattern))
        note = f" ({', '.join(left[:3])} is not that)" if left else ""
        raise CheckpointError(f"{folder}: no *.safetensors files of a model in Hugging Face format{note}; "
                              "save or download its safetensors weights.")
    return files


def tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every (file, name, tensor) of the model, read one at a time. Raises CheckpointError naming the file, or the tensor."""
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():
                    tensor = content.get_tensor(name)
                    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
                        raise CheckpointError(
                            f"{file}: tensor {name!r} is stored as {str(tensor.dtype).removeprefix('torch.')}: must be of 16 "
                            "bits or more, floating-point; this is a quantized format that is not implemented, use the "
                            "original checkpoint.")
                    yield file, name, tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a complete safetensors file ({error}); copy or download it again.") from error


def _named_by(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weights ({type(error).__name__}: {error}); "
                              "copy or download it again.") from error
    for name, file in zip(names, files):
        if file.parent != index.parent:
            raise CheckpointError(f"{index}: names {name!r}: must be a file beside it; copy or download it again.")
    return files
