"""Rotary position embedding: each pair of channels turns with the token's position."""

from typing import Any

import torch
from torch import Tensor, nn

from nanovllm.errors import CheckpointError
from nanovllm.utils.checks import check


class RotaryEmbedding(nn.Module):
    """RoPE (Su et al. 2021): channel i and i + head_dim/2 form a pair, turned by position * theta ** (-2i / head_dim).

    Owns a float32 table of cosines and sines, [max_positions, head_dim / 2]; bf16 could not tell apart the angles of
    neighbouring positions far out. One instance a model, no global.
    """

    def __init__(self, head_dim: int, max_positions: int, theta: float, *, device: torch.device | str | None = None):
        super().__init__()
        # On the CPU, so that every device holds the same table; in float32, the angles checkpoints were trained with.
        frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)
        angles = torch.arange(max_positions, device="cpu").float()[:, None] * frequencies
        self.cos, self.sin = angles.cos().to(device or "cpu"), angles.sin().to(device or "cpu")

    def forward(self, positions: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
        """positions: [num_tokens]; each of heads: [num_tokens, num_heads, head_dim] -> turned copies, same dtype."""
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        return tuple(_rotate(x, cos, sin) for x in heads)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def rope_theta(config: Any) -> float:
    """The base of a Hugging Face config, in either spelling (`rope_theta`, `rope_parameters`).

    Raises CheckpointError for scaled RoPE, which this engine does not implement: ignoring it would change every answer.
    """
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    check(kind == "default", "rope_type", kind, "'default'", "use a checkpoint without RoPE scaling", error=CheckpointError)
    theta: Any = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    check(theta is not None, "rope_theta", theta, "given in config.json", "add rope_theta to the model's config",
          error=CheckpointError)
    return float(theta)
