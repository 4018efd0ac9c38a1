"""The gate of the feed-forward network."""

import torch.nn.functional as F
from torch import Tensor, nn


class SiluAndMul(nn.Module):
    """SwiGLU (Shazeer 2020): silu(gate) * up, where x [num_tokens, 2 * size] holds gate and up side by side."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up
