"""Plausible wrong answers to chapter 07: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.solutions.ch07 import _slots, load_strictly, place_of, unpack
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from visualizations.figures.name_map import name_map


def looks_it_up_in_a_model(name, config):
    [place] = name_map(Qwen3ForCausalLM(config, None, device="meta"), [(name, ())])
    return place.parameter, place.start, place.stop


def heads_share_the_hidden_size(name, config):
    parameter, start, stop = place_of(name, config)
    if "qkv_proj" in parameter or "_norm.w" in parameter:
        narrow = config.hidden_size // config.num_attention_heads
        start, stop = (row // config.head_dim * narrow for row in (start, stop))
    return parameter, start, stop


def three_equal_parts(name, config):
    parameter, start, stop = place_of(name, config)
    third = config.num_attention_heads * config.head_dim
    return (parameter, 2 * third, 2 * third + stop - start) if ".v_proj" in name else (parameter, start, stop)


def names_as_they_are(name, config):
    return name, *place_of(name, config)[1:]


def not_strict(model, tensors):
    slots = _slots(model)
    for name, tensor in tensors:
        if name in slots:
            slots[name].copy_(tensor)


def counts_parameters(model, tensors):
    """Ticks off parameters, not tensors: one part of a packed weight stands for all of them."""
    slots, filled = _slots(model), set()
    for name, tensor in tensors:
        if name not in slots and name != "lm_head.weight":
            raise ValueError(f"{name} is not a tensor of this model")
        if name in slots:
            if slots[name].shape != tensor.shape:
                raise ValueError(f"{name} has the wrong shape")
            slots[name].copy_(tensor)
            filled.add(slots[name].untyped_storage().data_ptr())
    for name, slot in slots.items():
        if slot.untyped_storage().data_ptr() not in filled:
            raise ValueError(f"{name} is missing")


def trusts_copy(model, tensors):
    """Lets `copy_` judge the shapes: it broadcasts."""
    slots = _slots(model)
    missing = set(slots)
    for name, tensor in tensors:
        if name not in missing and not (model.tied and name == "lm_head.weight"):
            raise ValueError(f"{name} is unexpected")
        if name in missing:
            try:
                slots[name].copy_(tensor)
            except RuntimeError as error:
                raise ValueError(f"{name}: {error}") from error
            missing.remove(name)
    if missing:
        raise ValueError(f"missing: {sorted(missing)}")


def strict_about_the_tied_head(model, tensors):
    tied, model.tied = model.tied, False
    try:
        load_strictly(model, tensors)
    finally:
        model.tied = tied


def last_one_wins(model, tensors):
    load_strictly(model, dict(tensors).items())


def says_only_that(model, tensors):
    try:
        load_strictly(model, tensors)
    except ValueError as error:
        raise ValueError("this checkpoint does not fit") from error


def packed_names(model):
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


def both_names_of_the_table(model):
    return unpack(model) | {"lm_head.weight": model.lm_head.weight.clone()}


def equal_thirds(model):
    tensors = unpack(model)
    for i, layer in enumerate(model.model.layers):
        for part, piece in zip("qkv", layer.self_attn.qkv_proj.weight.chunk(3)):
            tensors[f"model.layers.{i}.self_attn.{part}_proj.weight"] = piece.clone()
    return tensors


def stops_at_the_first(model, tensors):
    """As the package's loader, which the chapter lists."""
    try:
        load_strictly(model, tensors)
    except ValueError as error:
        raise ValueError(str(error).split("; ")[0]) from None


WRONG = {
    "check_place_of": (looks_it_up_in_a_model, heads_share_the_hidden_size, three_equal_parts, names_as_they_are),
    "check_load": (not_strict, counts_parameters, trusts_copy, strict_about_the_tied_head, last_one_wins, says_only_that,
                   stops_at_the_first),
    "check_unpack": (packed_names, both_names_of_the_table, equal_thirds),
}
