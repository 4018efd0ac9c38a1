"""Solutions of chapter 07."""


def place_of(name, config):
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    up = config.intermediate_size
    packed = {"q_proj": ("qkv_proj", 0, q), "k_proj": ("qkv_proj", q, q + kv), "v_proj": ("qkv_proj", q + kv, q + 2 * kv),
              "gate_proj": ("gate_up_proj", 0, up), "up_proj": ("gate_up_proj", up, 2 * up)}
    *path, last, kind = name.split(".")
    if last in packed:
        holder, start, stop = packed[last]
        return ".".join((*path, holder, kind)), start, stop
    rows = {"embed_tokens": config.vocab_size, "lm_head": config.vocab_size, "q_norm": config.head_dim,
            "k_norm": config.head_dim}
    return name, 0, rows.get(last, config.hidden_size)  # o_proj, down_proj and the norms end in the stream


def _slots(model):
    """{checkpoint name: the tensor it fills}, a packed parameter under the name of each of its parts."""
    parts_of = {}
    for name, (holder, part) in model.packed_modules.items():
        parts_of.setdefault(holder, []).append((name, part))
    slots = {}
    for parameter_name, parameter in model.named_parameters():  # a tied head is not listed again
        *path, last, kind = parameter_name.split(".")
        module = model.get_submodule(".".join((*path, last)))
        for name, part in parts_of.get(last, [(last, None)]):
            slots[".".join((*path, name, kind))] = module.target(kind, part) if part else parameter
    return slots


def load_strictly(model, tensors):
    slots, wrong = _slots(model), []
    missing = set(slots)
    for name, tensor in tensors:
        if model.tied and name == "lm_head.weight":
            continue
        if name not in missing:
            wrong.append(f"{name} is {'in the checkpoint twice' if name in slots else 'not a tensor of this model'}")
        elif tensor.shape != slots[name].shape:
            wrong.append(f"{name} has shape {list(tensor.shape)}: must be {list(slots[name].shape)}")
        else:
            slots[name].copy_(tensor)
        missing.discard(name)
    wrong += [f"{name} is missing" for name in sorted(missing)]
    if wrong:
        raise ValueError("; ".join(wrong))


def unpack(model):
    return {name: tensor.clone() for name, tensor in _slots(model).items()}
