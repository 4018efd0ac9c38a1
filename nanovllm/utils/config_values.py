"""What the values of a config.json must be, whoever uses them: a wrong one is named here, and no arithmetic meets it."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from nanovllm.errors import CheckpointError
from nanovllm.utils.checks import check
from nanovllm.utils.numbers import is_int

FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window", "norm_topk_prob")
COUNTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
LAYER_KINDS = ("full_attention", "sliding_attention")
MOST = 2**31  # no count of a model comes near it, and torch takes none beyond
COPY = "copy the model's own config.json again"


def check_count(name: str, value: object) -> None:
    """Raise CheckpointError unless value is a whole number, 1 or more."""
    check(is_int(value) and 1 <= value < MOST, name, value, "a whole number from 1 to 2**31 - 1", COPY, error=CheckpointError)


def check_values(file: Path, values: Mapping[str, Any], read: Container[str]) -> None:
    """Raise CheckpointError, naming file and key, for a value of the wrong kind, or two that contradict each other.

    read: the keys that the model's family looks at; what others hold is nobody's business.
    """
    for name in COUNTS:
        if name in read:
            check_count(f"{file}: {name}", values[name])
    for name in FLAGS:
        if name in read:
            check(values[name] in (True, False), f"{file}: {name}", values[name], "true or false", COPY, error=CheckpointError)
    window, first, experts = values.get("sliding_window"), values.get("max_window_layers"), values.get("mlp_only_layers")
    if "sliding_window" in read and window is not None:
        check_count(f"{file}: sliding_window", window)
    if "max_window_layers" in read:
        check(is_int(first) and first >= 0, f"{file}: max_window_layers", first, "a whole number, 0 or more", COPY,
              error=CheckpointError)
    if "mlp_only_layers" in read and experts is not None:
        check(isinstance(experts, list) and all(map(is_int, experts)), f"{file}: mlp_only_layers", experts,
              "a list of layer numbers", COPY, error=CheckpointError)
    kinds = values.get("layer_types")
    if "use_sliding_window" in read and kinds is not None:
        check(isinstance(kinds, list) and all(kind in LAYER_KINDS for kind in kinds), f"{file}: layer_types", kinds,
              f"a list of {' and '.join(LAYER_KINDS)}", "layers of other kinds are not implemented", error=CheckpointError)
    heads, shared = values["num_attention_heads"], values["num_key_value_heads"]
    check(heads % shared == 0, f"{file}: num_attention_heads", heads, f"a multiple of num_key_value_heads={shared}", COPY,
          error=CheckpointError)
    check(values["head_dim"] % 2 == 0, f"{file}: head_dim", values["head_dim"], "even, as RoPE turns pairs of channels", COPY,
          error=CheckpointError)
