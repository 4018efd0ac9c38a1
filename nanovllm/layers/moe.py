"""A feed-forward network of many experts, of which each token uses a few."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovllm.layers.activation import SiluAndMul
from nanovllm.layers.tensor_parallel import TensorParallel


def route(logits: Tensor, num_active: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts (Shazeer et al. 2017).

    logits: [num_tokens, num_experts]. normalize: whether the weights of those chosen sum to one; otherwise they are what the
    softmax over all experts gave them. Returns (experts [num_tokens, num_active] int64, the likeliest first, and their
    weights, in the logits' dtype).
    """
    weights, experts = torch.topk(logits.float().softmax(-1), num_active, -1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights.to(logits.dtype)


class Experts(nn.Module):
    """num_experts SwiGLU networks, one behind the other in two stacked weights, so that one kernel can reach all of them.

    gate_up_proj: [num_experts, 2 * size, hidden_size]; down_proj: [num_experts, hidden_size, size]. Of a model that is split,
    each rank holds some channels of every expert, as `ColumnParallelLinear` and `RowParallelLinear` do for one, and not some
    of the experts: then all ranks have equal work whatever the tokens choose.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, tp: TensorParallel, **factory: Any):
        super().__init__()
        size = tp.shard("moe_intermediate_size", intermediate_size)
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * size, hidden_size, **factory), requires_grad=False)
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, size, **factory), requires_grad=False)
        self.num_experts, self.size, self.tp, self.act_fn = num_experts, size, tp, SiluAndMul()

    def checkpoint_names(self, name: str) -> list[tuple[str, tuple[int, str]]]:
        """A checkpoint keeps every expert's matrices apart: their names below this module's, and what part each one fills."""
        parts = ("gate", "up") if name == "gate_up_proj" else ("down",)
        return [(f"{expert}.{part}_proj.weight", (expert, part)) for expert in range(self.num_experts) for part in parts]

    def target(self, name: str, part: tuple[int, str]) -> Tensor:
        """As `ReplicatedLinear.target`; part: (expert, "gate" | "up" | "down")."""
        expert, kind = part
        weight: Tensor = getattr(self, name)[expert]
        return {"gate": weight[:self.size], "up": weight[self.size:], "down": weight}[kind]

    def share(self, name: str, part: tuple[int, str]) -> tuple[int, int, int]:
        """As `ReplicatedLinear.share`."""
        return 1 if part[1] == "down" else 0, self.tp.rank, self.tp.size

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x: [num_tokens, hidden_size]; experts, weights: [num_tokens, num_active], from `route` -> like x.

        One expert after the other, with all the tokens that chose it.
        """
        out = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            token, choice = torch.where(experts == expert)
            inner = self.act_fn(F.linear(x[token], self.gate_up_proj[expert]))
            out.index_add_(0, token, F.linear(inner, self.down_proj[expert]) * weights[token, choice, None])
        return self.tp.all_reduce(out)
