"""From safetensors files to the model's parameters, with every tensor accounted for."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

Destination = tuple[str, str, object]  # the module's name, its parameter's, and which part of that a tensor fills


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Fill the model's parameters from the safetensors files of a Hugging Face folder, one tensor at a time.

    A model says what is packed by `packed_modules` (checkpoint name -> (module, part)); the module that holds a
    parameter says which slice a tensor fills (`target`) and which share of it is this rank's (`share`). Anything else,
    such as a norm, takes its tensor whole. A module whose parameters are named otherwise in a checkpoint lists their names,
    and the part that each fills (`checkpoint_names`). Tensors are cast to the parameter's dtype.

    Raises ValueError naming the tensor or the file when one is missing, unexpected, misshapen or unreadable. A model
    that raised holds uninitialised memory and must not be used.
    """
    folder = Path(folder)
    packed = getattr(model, "packed_modules", {})
    tied_head = getattr(model, "tied", False)
    destinations = _destinations(model, packed)
    missing = set(destinations)
    if tied_head:
        missing.discard("lm_head.weight")
    with torch.no_grad():
        for file, name, tensor in _tensors(folder):
            if tied_head and name == "lm_head.weight":  # some writers save the shared table twice
                continue
            if name not in missing:
                raise ValueError(f"{file}: unexpected tensor {name!r}: this model has no place for it; "
                                 "check that config.json belongs to these weights.")
            _fill(model, destinations[name], file, name, tensor)
            missing.remove(name)
    if missing:
        first = sorted(missing)
        raise ValueError(f"{folder}: {len(first)} tensors are missing, among them {', '.join(first[:5])}; "
                         "copy or download all of the checkpoint's files.")


def random_weights(model: nn.Module, deviation: float = 0.02) -> None:
    """Fill the parameters where they lie, always with the same: ones for norms, zeros for biases, random for the rest.

    Ranks of a split model do not get the shares of one whole model: for measuring, that is as good.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0 if name.endswith("bias") else 1)
            else:
                parameter.normal_(0, deviation, generator=generator)


def _fill(model: nn.Module, destination: Destination, file: Path, name: str, tensor: torch.Tensor) -> None:
    module_name, parameter_name, part = destination
    module = model.get_submodule(module_name)
    if hasattr(module, "target"):
        target, (dim, index, count) = module.target(parameter_name, part), module.share(parameter_name, part)
    else:
        target, (dim, index, count) = getattr(module, parameter_name), (0, 0, 1)
    size, whole = target.shape[dim], list(target.shape)
    whole[dim] *= count
    # The whole tensor, before the cut: a share of one that is too large would fit.
    if list(tensor.shape) != whole:
        raise ValueError(f"{file}: tensor {name!r} has shape {list(tensor.shape)}: must be {whole}; "
                         "check that config.json belongs to these weights.")
    target.copy_(tensor.narrow(dim, index * size, size))


def _destinations(model: nn.Module, packed: dict) -> dict[str, Destination]:
    """The checkpoint's name of everything that must be filled, and where each goes."""
    parts_of = {}
    for name, (holder, part) in packed.items():
        parts_of.setdefault(holder, []).append((name, part))
    destinations = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        module_name, parameter_name = name.rsplit(".", 1)
        parent, _, last = module_name.rpartition(".")
        module = model.get_submodule(module_name)
        if hasattr(module, "checkpoint_names"):
            for original, part in module.checkpoint_names(parameter_name):
                destinations[f"{module_name}.{original}"] = module_name, parameter_name, part
            continue
        for original, part in parts_of.get(last, [(last, None)]):
            destinations[".".join(filter(None, (parent, original, parameter_name)))] = module_name, parameter_name, part
    return destinations


def _tensors(folder: Path):
    """Every (file, name, tensor) of the folder: of the index where there is one, else of all *.safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index of weights ({type(error).__name__}: {error}); "
                             "copy or download it again.") from error
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no *.safetensors files; save or download the weights in safetensors format.")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: the index names this file, but it is missing; copy or download it.")
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    yield file, name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file}: not a complete safetensors file ({error}); copy or download it again.") from error
