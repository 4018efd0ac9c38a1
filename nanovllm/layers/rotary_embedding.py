"""Rotary position embedding: each pair of channels turns with the token's position."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nanovllm.errors import CheckpointError
from nanovllm.utils.checks import check
from nanovllm.utils.numbers import is_number


class RotaryEmbedding(nn.Module):
    """RoPE (Su et al. 2021): channel i and i + head_dim/2 form a pair, turned by position * theta ** (-2i / head_dim).

    frequencies: what takes the place of theta ** (-2i / head_dim), [head_dim / 2] float32, and factor: what cosines and
    sines are multiplied by, in checkpoints that stretch RoPE to longer contexts.

    Owns a float32 table of cosines and sines, [max_positions, head_dim / 2]; bf16 could not tell apart the angles of
    neighbouring positions far out. One instance per model, no global.
    """

    def __init__(self, head_dim: int, max_positions: int, theta: float, *, frequencies: Tensor | None = None,
                 factor: float = 1.0, device: torch.device | str | None = None):
        super().__init__()
        # On the CPU, so that every device holds the same table; in float32, the angles checkpoints were trained with.
        if frequencies is None:
            frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)
        self.frequencies = frequencies
        angles = torch.arange(max_positions, device="cpu").float()[:, None] * frequencies
        cos, sin = (angles.cos(), angles.sin()) if factor == 1 else (angles.cos() * factor, angles.sin() * factor)
        self.cos, self.sin = cos.to(device or "cpu"), sin.to(device or "cpu")

    @classmethod
    def from_config(cls, config: Any, device: torch.device | str | None = None) -> "RotaryEmbedding":
        """The table that a Hugging Face config asks for, as long as the model's longest context."""
        parameters = rope_parameters(config)
        frequencies, factor = None, 1.0
        if parameters["rope_type"] != "default":
            frequencies, factor = _scaled_frequencies(config, parameters)
        if divisors := getattr(config, "rope_frequency_divisors", None):  # a GGUF file's own words for llama3
            plain = cls(config.head_dim, 2, parameters["rope_theta"]).frequencies
            divided = plain if frequencies is None else frequencies
            frequencies = divided / torch.tensor(divisors, dtype=torch.float32, device="cpu")
        return cls(config.head_dim, longest_context(config), parameters["rope_theta"], frequencies=frequencies,
                   factor=factor, device=device)

    def forward(self, positions: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
        """positions: [num_tokens]; each of heads: [num_tokens, num_heads, head_dim] -> turned copies, same dtype."""
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        return tuple(_rotate(x, cos, sin) for x in heads)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


# Kinds of scaling, and the numbers that each cannot do without.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
# ... and those that may be there, too.
MAY_BE = ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")


def rope_parameters(config: Any) -> dict[str, Any]:
    """A Hugging Face config's RoPE in one spelling, with `rope_type` and `rope_theta`; it may use `rope_parameters`,
    `rope_scaling`, `type` and a `rope_theta` at the top.

    Raises CheckpointError for a kind that is not implemented, as ignoring it would change every answer, and for a value that
    is missing, or no number.
    """
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    copy = "copy the model's own config.json again"
    check(isinstance(found, Mapping), "rope_scaling", found, "an object or null", copy, error=CheckpointError)
    kind = found.get("rope_type") or found.get("type") or "default"
    check(isinstance(kind, str) and kind in ROPE_TYPES, "rope_type", kind, f"one of {', '.join(ROPE_TYPES)}",
          "use a checkpoint with one of these", error=CheckpointError)
    theta: Any = found.get("rope_theta") or getattr(config, "rope_theta", None)
    check(is_number(theta) and theta > 0, "rope_theta", theta, "a number above 0, given in config.json",
          "add rope_theta to the model's config", error=CheckpointError)
    needed = ROPE_TYPES[kind]
    for name in (*needed, *(name for name in MAY_BE if kind != "default" and found.get(name) is not None)):
        value = found.get(name)
        check(is_number(value) and value > 0, f"rope_scaling[{name!r}]", value, f"a number above 0 for rope_type={kind!r}",
              copy, error=CheckpointError)
    check(kind != "llama3" or found["low_freq_factor"] < found["high_freq_factor"], "rope_scaling['low_freq_factor']",
          found.get("low_freq_factor"), f"below high_freq_factor={found.get('high_freq_factor')}", copy, error=CheckpointError)
    part = found.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    check(part in (None, 1), "partial_rotary_factor", part, "absent or 1.0", "heads that turn in part are not implemented",
          error=CheckpointError)
    kept = {key: value for key, value in found.items() if key != "type"}
    return kept | {"rope_type": kind, "rope_theta": float(theta)}


def rope_theta(config: Any) -> float:
    """The base of a Hugging Face config, in either spelling. Raises as `rope_parameters` does."""
    theta: float = rope_parameters(config)["rope_theta"]
    return theta


def longest_context(config: Any) -> int:
    """Tokens of the longest sequence for which the config's RoPE is meant, as vLLM reckons.

    `linear` and `yarn` stretch what the model was trained with by their factor. `llama3` counts its stretch in
    max_position_embeddings. `dynamic` stays at max_position_embeddings, where it changes nothing: beyond, its frequencies
    depend on the length of the sequence, and keys that lie in the cache would have to be turned again.
    """
    parameters, trained = rope_parameters(config), int(config.max_position_embeddings)
    if parameters["rope_type"] == "linear":
        return int(trained * parameters["factor"])
    if parameters["rope_type"] == "yarn":
        original = parameters.get("original_max_position_embeddings") or trained
        return max(trained, int(original * parameters["factor"]))
    return trained


def _scaled_frequencies(config: Any, parameters: dict[str, Any]) -> tuple[Tensor, float]:
    """Frequencies and factor of a scaled RoPE, by transformers' own functions, which take a second or two to import."""
    from transformers import LlamaConfig  # whose own defaults matter to none of them
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = LlamaConfig(hidden_size=config.hidden_size, num_attention_heads=config.num_attention_heads,
                        head_dim=config.head_dim, max_position_embeddings=config.max_position_embeddings,
                        rope_parameters=dict(parameters))
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](plain, "cpu")
    return frequencies.float(), float(factor)
