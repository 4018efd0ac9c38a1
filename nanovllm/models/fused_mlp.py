"""The second half of a layer in few launches: one feed-forward network, or many experts of which each token uses a few."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovllm.kernels import moe
from nanovllm.kernels.linear import linear, norm_linear
from nanovllm.kernels.prefill_linear import DEPTH, FEATURES, gated_linear, inverse_rms
from nanovllm.kernels.rms_norm import rms_norm
from nanovllm.kernels.silu_and_mul import silu_and_mul
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.linear import ReplicatedLinear, RowParallelLinear
from nanovllm.models.qwen3 import Qwen3MLP
from nanovllm.models.qwen3_moe import Qwen3MoeBlock


class FusedMLP:
    """SwiGLU in three ways, as `FeedForward` says: two products with the gate between them."""

    def __init__(self, norm: RMSNorm, mlp: Qwen3MLP):
        self.norm, self.gate_up, self.down = norm, mlp.gate_up_proj, mlp.down_proj
        self.has_no_bias = self.gate_up.bias is None and self.down.bias is None
        fold(norm, self.gate_up)

    def fits_tiles(self) -> bool:
        """Whether `kernels.prefill_linear` can do gate and up."""
        weight = self.gate_up.weight
        return self.gate_up.bias is None and fits_depth(weight) and len(weight) % (2 * FEATURES) == 0

    def many(self, stream: Tensor) -> None:
        """stream: the residual stream, [num_tokens, hidden_size], taken through it in place."""
        if self.gate_up.bias is None:
            inner = silu_and_mul(self.gate_up(stream), stream, self.norm.eps)
        else:  # a bias is added to the product of what is normed already
            inner = silu_and_mul(self.gate_up(rms_norm(stream, None, self.norm.weight, self.norm.eps)[0]))
        add_product(stream, self.down, inner)

    def prompt(self, stream: Tensor) -> None:
        """As `many`; the gate is done before the product of gate and up leaves the chip."""
        add_product(stream, self.down, gated_linear(stream, self.gate_up.weight, inverse_rms(stream, self.norm.eps)))

    def few(self, stream: Tensor) -> None:
        """As `many`, for a few tokens; the gate is done where gate and up are."""
        add_few(stream, self.down, norm_linear(stream, self.norm.eps, self.gate_up.weight, gated=True))


class FusedExperts:
    """Experts, as `FeedForward` says. The norm is a launch of its own: router and experts both read its result."""

    def __init__(self, norm: RMSNorm, block: Qwen3MoeBlock):
        self.norm, self.router, self.experts = norm, block.gate, block.experts
        self.num_active, self.normalize = block.num_active, block.normalize
        self.has_no_bias = True

    def fits_tiles(self) -> bool:
        """Its kernels take any shape."""
        return True

    def many(self, stream: Tensor) -> None:
        """stream: the residual stream, [num_tokens, hidden_size], taken through it in place."""
        hidden, _ = rms_norm(stream, None, self.norm.weight, self.norm.eps)
        self._add(hidden, F.linear(hidden, self.router.weight), stream)

    prompt = many

    def few(self, stream: Tensor) -> None:
        """As `many`, for a few tokens."""
        hidden, _ = rms_norm(stream, None, self.norm.weight, self.norm.eps)
        self._add(hidden, linear(hidden, self.router.weight), stream)

    def _add(self, hidden: Tensor, logits: Tensor, stream: Tensor) -> None:
        """stream += what the experts that the logits choose make of it, summed over ranks."""
        if self.experts.tp.size == 1:
            self._run(hidden, logits, stream)
        else:
            stream += self.experts.tp.all_reduce(self._run(hidden, logits))

    def _run(self, hidden: Tensor, logits: Tensor, add_to: Tensor | None = None) -> Tensor:
        chosen = moe.route(logits, self.num_active, self.normalize)
        return moe.grouped_experts(hidden, *chosen, self.experts.gate_up_proj, self.experts.down_proj, add_to)


def fits_depth(weight: Tensor) -> bool:
    """Whether the inputs of a weight come out even in `kernels.prefill_linear`."""
    return weight.shape[1] % DEPTH == 0


def fold(norm: RMSNorm, projection: ReplicatedLinear) -> None:
    """Move the norm's weight into the projection behind it; the two together compute what they did."""
    with torch.no_grad():
        projection.weight.mul_(norm.weight)
        norm.weight.fill_(1)


def add_product(stream: Tensor, projection: RowParallelLinear, x: Tensor) -> None:
    """stream += projection(x), by the product itself where it has no bias; each rank then brings its share of the stream."""
    if projection.bias is None:
        projection.tp.all_reduce(stream.addmm_(x, projection.weight.t(), beta=1 / projection.tp.size))
    else:
        stream += projection(x)


def add_few(stream: Tensor, projection: RowParallelLinear, x: Tensor) -> None:
    """As `add_product`, for a few tokens and a projection without a bias."""
    projection.tp.all_reduce(linear(x, projection.weight, stream, 1 / projection.tp.size))
