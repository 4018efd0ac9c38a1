"""From safetensors files to the model's parameters, with every tensor accounted for."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanovllm.errors import CheckpointError
from nanovllm.utils.checkpoint import tensors
from nanovllm.utils.counted import counted
from nanovllm.utils.gguf_file import gguf_tensors, is_gguf

PackedModules = dict[str, tuple[str, object]]  # checkpoint name -> (module that holds it, which part of that)
Destination = tuple[str, str, object]  # the module's name, its parameter's, and which part of that a tensor fills
# Buffers that older versions of transformers saved, and every version computes anew.
COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Fill the model's parameters from the safetensors files of a folder, or from a GGUF file, one tensor at a time.

    A model says what is packed by `packed_modules` (checkpoint name -> (module, part)); the module that holds a
    parameter says which slice a tensor fills (`target`) and which share of it is this rank's (`share`). Anything else,
    such as a norm, takes its tensor whole. A module whose parameters are named otherwise in a checkpoint lists their names,
    and the part that each fills (`checkpoint_names`). Tensors are cast to the parameter's dtype.

    Names are taken as transformers takes them: with or without the "model." that a base model saves without, and buffers
    that are computed anew are passed over. A model that ties its head to the embedding takes the head from the file all
    the same when that holds another one, and its embedding from the head when that is all there is.

    Raises CheckpointError naming the tensor or the file when one is missing, unexpected, there twice, misshapen or
    unreadable. A model that raised holds uninitialised memory and must not be used.
    """
    folder = Path(folder)
    packed: PackedModules = getattr(model, "packed_modules", {})
    tied_head = getattr(model, "tied", False)
    destinations = _destinations(model, packed)
    missing = set(destinations)
    head: tuple[Path, torch.Tensor] | None = None
    with torch.no_grad():
        for file, stored_name, tensor in gguf_tensors(folder) if is_gguf(folder) else tensors(folder):
            if stored_name.endswith(COMPUTED):
                continue
            names = (stored_name, f"model.{stored_name}", stored_name.removeprefix("model."))
            name = next((name for name in names if name in destinations), None)
            if name is None:
                raise CheckpointError(f"{file}: unexpected tensor {stored_name!r}: this model has no place for it; "
                                      "check that config.json belongs to these weights.")
            if name not in missing:
                raise CheckpointError(f"{file}: tensor {stored_name!r} is there twice; keep one file of each tensor.")
            missing.remove(name)
            if tied_head and name == HEAD:
                head = file, tensor
            else:
                _fill(model, destinations[name], file, name, tensor)
        if tied_head:
            missing.discard(HEAD)
            if head is not None:
                _fill_tied_head(model, destinations[HEAD], *head, alone=TABLE in missing)
                missing.discard(TABLE)
    if missing:
        first = sorted(missing)
        raise CheckpointError(f"{folder}: {counted(len(first), 'tensor is', 'tensors are')} missing, "
                              f"{'among them ' if len(first) > 5 else ''}{', '.join(first[:5])}; "
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


def _fill_tied_head(model: nn.Module, destination: Destination, file: Path, tensor: torch.Tensor, alone: bool) -> None:
    """A head that the files hold although config.json ties it. alone: they hold no embedding, which is then the head.

    Some writers save the shared table twice. Where the two differ, config.json is wrong, and both are used, as
    transformers does.
    """
    head: Any = model.get_submodule("lm_head")
    table = model.get_parameter(TABLE)
    if not alone:
        head.weight = nn.Parameter(torch.empty_like(table), requires_grad=False)
    _fill(model, destination, file, HEAD, tensor)
    if not alone and torch.equal(head.weight, table):
        head.weight = table


def _fill(model: nn.Module, destination: Destination, file: Path, name: str, tensor: torch.Tensor) -> None:
    module_name, parameter_name, part = destination
    module: Any = model.get_submodule(module_name)
    if hasattr(module, "target"):
        target, (dim, index, count) = module.target(parameter_name, part), module.share(parameter_name, part)
    else:
        target, (dim, index, count) = getattr(module, parameter_name), (0, 0, 1)
    size, whole = target.shape[dim], list(target.shape)
    whole[dim] *= count
    # The whole tensor, before the cut: a share of one that is too large would fit.
    if list(tensor.shape) != whole:
        raise CheckpointError(f"{file}: tensor {name!r} has shape {list(tensor.shape)}: must be {whole}; "
                              "check that config.json belongs to these weights.")
    target.copy_(tensor.narrow(dim, index * size, size))


def _destinations(model: nn.Module, packed: PackedModules) -> dict[str, Destination]:
    """The checkpoint's name of everything that must be filled, and where each goes."""
    parts_of: dict[str, list[tuple[str, object]]] = {}
    for name, (holder, part) in packed.items():
        parts_of.setdefault(holder, []).append((name, part))
    destinations: dict[str, Destination] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        module_name, parameter_name = name.rsplit(".", 1)
        parent, _, last = module_name.rpartition(".")
        module: Any = model.get_submodule(module_name)
        if hasattr(module, "checkpoint_names"):
            for original, part in module.checkpoint_names(parameter_name):
                destinations[f"{module_name}.{original}"] = module_name, parameter_name, part
            continue
        for original, part in parts_of.get(last, [(last, None)]):
            destinations[".".join(filter(None, (parent, original, parameter_name)))] = module_name, parameter_name, part
    return destinations
