"""Any family of `models/` in few launches: what the plain modules compute, with a kernel for each stretch between products."""

import sys
from typing import Any

import torch
from torch import Tensor

from nanovllm.kernels.device import has_tma
from nanovllm.kernels.linear import linear, norm_linear
from nanovllm.kernels.norm_rope_store import norm_rope_store
from nanovllm.kernels.prefill_linear import DEPTH, FEATURES, gated_linear, inverse_rms, qkv_linear
from nanovllm.kernels.rms_norm import rms_norm
from nanovllm.kernels.silu_and_mul import silu_and_mul
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.linear import ReplicatedLinear
from nanovllm.models.qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM
from nanovllm.utils.context import Context

# So few tokens make a product a mere read of its weight, and our kernels read it faster than cuBLAS. Each number is a
# kernel of its own to compile, so these are the sizes in which decode graphs come, not every one below.
FEW_TOKENS = (1, 2, 4)
PROMPT_TOKENS = 1024  # from so many on every multiprocessor gets its two tiles of 128 tokens by one head


class FusedModel:
    """Runs the layers of a model of `models/` with the kernels of `nanovllm.kernels`.

    Owns nothing: the weights stay the model's. A layer takes seven launches instead of some thirty.
    """

    def __init__(self, model: Qwen3ForCausalLM):
        self.model = model
        self.layers = [FusedLayer(layer) for layer in model.model.layers]
        whole = model.lm_head.tp.size == 1 and all(layer.is_whole for layer in self.layers)
        self.few_tokens = FEW_TOKENS if whole else ()
        self.prompt_tokens = PROMPT_TOKENS if all(layer.fits_tiles() for layer in self.layers) else sys.maxsize

    def __call__(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """As the plain model's forward: the final hidden states, [num_tokens, hidden_size]."""
        model, num_tokens = self.model.model, len(input_ids)
        x, residual = model.embed_tokens(input_ids), None
        for layer, layer_cache in zip(self.layers, kv_cache):
            if num_tokens in self.few_tokens:
                x, residual = layer.few(positions, x, residual, layer_cache, context)
            elif num_tokens >= self.prompt_tokens:
                layer.prompt(positions, x, layer_cache, context)
            else:
                layer.many(positions, x, layer_cache, context)
        return rms_norm(x, residual, model.norm.weight, model.norm.eps)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """As the plain model's: [num_rows, vocab_size]."""
        few = len(hidden) in self.few_tokens
        return linear(hidden, self.model.lm_head.weight) if few else self.model.compute_logits(hidden)


class FusedLayer:
    """One layer, its modules read once, and three ways to run it that differ in where a product's surroundings are computed.

    `many` is the usual one. A few tokens go another way (`few`), where a launch costs as much as the work, and so do a
    thousand and more (`prompt`), where what costs is to write a result and read it again.

    Two things a product can do on the way need no launch of their own. It adds its result to the residual stream. And the
    norm before a projection is 1 / rms of the token's row, one number, times a weight for each input: the weight goes into
    the projection's own once, when the layer is read, and the number into whatever reads the product.
    """

    def __init__(self, layer: Qwen3DecoderLayer):
        attention = layer.self_attn
        self.before, self.qkv, self.o = layer.input_layernorm, attention.qkv_proj, attention.o_proj
        self.after, self.gate_up, self.down = layer.post_attention_layernorm, layer.mlp.gate_up_proj, layer.mlp.down_proj
        self.attend, self.scale, self.head_dim = attention.attn.backend.attend, attention.attn.scale, attention.head_dim
        # What the kernels want to know between the projection and the cache.
        self.turn = (attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.eps,
                     attention.rotary.cos, attention.rotary.sin)
        if self.qkv.bias is None:
            _fold(self.before, self.qkv)
        _fold(self.after, self.gate_up)

    @property
    def is_whole(self) -> bool:
        """Whether `few` can run it: no sum over ranks, no bias."""
        return all(linear.bias is None for linear in (self.qkv, self.o, self.gate_up, self.down)) and self.down.tp.size == 1

    def fits_tiles(self) -> bool:
        """Whether `kernels.prefill_linear` can do the layer's projections, on the device where it is."""
        gate_up = self.gate_up.weight
        narrow = gate_up.dtype.itemsize == 2 or not gate_up.is_cuda
        return (has_tma(gate_up.device) and narrow and self.qkv.bias is None and self.head_dim in (32, 64, 128)
                and gate_up.shape[1] % DEPTH == 0 and len(gate_up) % (2 * FEATURES) == 0)

    def many(self, positions: Tensor, stream: Tensor, kv_cache: Tensor, context: Context) -> None:
        """stream: the residual stream, [num_tokens, hidden_size], taken through the layer in place."""
        if self.qkv.bias is None:
            qkv, unscaled = self.qkv(stream), (stream, self.before.eps)
        else:  # a bias is added to the normed product
            qkv, unscaled = self.qkv(rms_norm(stream, None, self.before.weight, self.before.eps)[0]), ()
        _add(stream, self.o, self._attention(qkv, positions, kv_cache, context, *unscaled))
        _add(stream, self.down, silu_and_mul(self.gate_up(stream), stream, self.after.eps))

    def prompt(self, positions: Tensor, stream: Tensor, kv_cache: Tensor, context: Context) -> None:
        """As `many`, for so many tokens that what stands behind a product is best done before its result is written."""
        q = qkv_linear(stream, self.qkv.weight, inverse_rms(stream, self.before.eps), positions, *self.turn, *kv_cache,
                       context.slot_mapping)
        _add(stream, self.o, self.attend(q, *kv_cache, context, self.scale).flatten(1))
        _add(stream, self.down, gated_linear(stream, self.gate_up.weight, inverse_rms(stream, self.after.eps)))

    def few(self, positions: Tensor, x: Tensor, residual: Tensor | None, kv_cache: Tensor, context: Context
            ) -> tuple[Tensor, Tensor]:
        """As the plain layer's forward: the residual stream is x + residual, which the next norm adds up."""
        qkv, residual = norm_linear(x, residual, self.before.weight, self.before.eps, self.qkv.weight)
        x = linear(self._attention(qkv, positions, kv_cache, context), self.o.weight)
        x, residual = norm_linear(x, residual, self.after.weight, self.after.eps, self.gate_up.weight, gated=True)
        return linear(x, self.down.weight), residual

    def _attention(self, qkv: Tensor, positions: Tensor, kv_cache: Tensor, context: Context, *unscaled: Any) -> Tensor:
        """From the projection's output to attention's, [num_tokens, num_heads * head_dim]."""
        q = norm_rope_store(qkv, positions, *self.turn, *kv_cache, context.slot_mapping, *unscaled)
        return self.attend(q, *kv_cache, context, self.scale).flatten(1)


def _fold(norm: RMSNorm, projection: ReplicatedLinear) -> None:
    """Move the norm's weight into the projection behind it; the two together compute what they did."""
    with torch.no_grad():
        projection.weight *= norm.weight
        norm.weight.fill_(1)


def _add(stream: Tensor, projection: ReplicatedLinear, x: Tensor) -> None:
    """stream += projection(x), by the product itself where it is whole and has no bias."""
    if projection.bias is None and projection.tp.size == 1:
        stream.addmm_(x, projection.weight.t())
    else:
        stream += projection(x)
