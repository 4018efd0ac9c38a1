"""Qwen3 in few launches: what `qwen3.py` computes, with a kernel for each stretch between two matrix products."""

import sys

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
from nanovllm.models.qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3ForCausalLM
from nanovllm.utils.context import Context

# So few tokens make a product a mere read of its weight, and our kernels read it faster than cuBLAS. Each number is a
# kernel of its own to compile, so these are the sizes in which decode graphs come, not every one below.
FEW_TOKENS = (1, 2, 4)
PROMPT_TOKENS = 1024  # from so many on every multiprocessor gets its two tiles of 128 tokens by one head


class FusedQwen3:
    """Runs the layers of a Qwen3ForCausalLM with the kernels of `nanovllm.kernels`.

    Owns nothing: the weights stay the model's, and each method below is the plain module's `forward` with fewer, larger
    steps. A layer takes seven launches instead of some thirty. A few tokens go another way (`_few`), where a launch costs
    as much as the work, and so do a thousand and more (`_prompt`), where what costs is to write a result and read it again.

    Two things a product can do on the way need no launch of their own. It adds its result to the residual stream. And the
    norm before a projection is 1 / rms of the token's row, one number, times a weight for each input: the weight goes into
    the projection's own once, when the model is made, and the number into whatever reads the product.
    """

    def __init__(self, model: Qwen3ForCausalLM):
        self.model = model
        linears = [module for layer in model.model.layers for module in layer.modules() if hasattr(module, "bias")]
        whole = model.lm_head.tp.size == 1 and all(module.bias is None for module in linears)
        self.few_tokens = FEW_TOKENS if whole else ()
        self.prompt_tokens = PROMPT_TOKENS if _fits_tiles(model) else sys.maxsize
        for layer in model.model.layers:
            if layer.self_attn.qkv_proj.bias is None:
                _fold(layer.input_layernorm, layer.self_attn.qkv_proj)
            _fold(layer.post_attention_layernorm, layer.mlp.gate_up_proj)

    def __call__(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """As Qwen3ForCausalLM.forward: the final hidden states, [num_tokens, hidden_size]."""
        model = self.model.model
        x, residual = model.embed_tokens(input_ids), None
        for layer, layer_cache in zip(model.layers, kv_cache):
            if len(input_ids) in self.few_tokens:
                x, residual = self._few(layer, positions, x, residual, layer_cache, context)
            elif len(input_ids) >= self.prompt_tokens:
                self._prompt(layer, positions, x, layer_cache, context)
            else:
                self._many(layer, positions, x, layer_cache, context)
        return rms_norm(x, residual, model.norm.weight, model.norm.eps)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """As Qwen3ForCausalLM.compute_logits: [num_rows, vocab_size]."""
        few = len(hidden) in self.few_tokens
        return linear(hidden, self.model.lm_head.weight) if few else self.model.compute_logits(hidden)

    def _many(self, layer: Qwen3DecoderLayer, positions: Tensor, stream: Tensor, kv_cache: Tensor, context: Context) -> None:
        """stream: the residual stream, [num_tokens, hidden_size], taken through the layer in place."""
        attention, mlp, before, after = layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
        if attention.qkv_proj.bias is None:
            qkv, unscaled = attention.qkv_proj(stream), (stream, before.eps)
        else:  # a bias is added to the normed product
            qkv, unscaled = attention.qkv_proj(rms_norm(stream, None, before.weight, before.eps)[0]), ()
        _add(stream, attention.o_proj, self._attend(attention, qkv, positions, kv_cache, context, *unscaled))
        _add(stream, mlp.down_proj, silu_and_mul(mlp.gate_up_proj(stream), stream, after.eps))

    def _prompt(self, layer: Qwen3DecoderLayer, positions: Tensor, stream: Tensor, kv_cache: Tensor, context: Context) -> None:
        """As `_many`, for so many tokens that what stands behind a product is best done before its result is written."""
        attention, mlp, before, after = layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
        rotary, norm = attention.rotary, attention.q_norm
        q = qkv_linear(stream, attention.qkv_proj.weight, inverse_rms(stream, before.eps), positions, norm.weight,
                       attention.k_norm.weight, norm.eps, rotary.cos, rotary.sin, *kv_cache, context.slot_mapping)
        _add(stream, attention.o_proj, attention.attn.backend.attend(q, *kv_cache, context, attention.attn.scale).flatten(1))
        _add(stream, mlp.down_proj, gated_linear(stream, mlp.gate_up_proj.weight, inverse_rms(stream, after.eps)))

    def _few(self, layer: Qwen3DecoderLayer, positions: Tensor, x: Tensor, residual: Tensor | None, kv_cache: Tensor,
             context: Context) -> tuple[Tensor, Tensor]:
        before, after, mlp = layer.input_layernorm, layer.post_attention_layernorm, layer.mlp
        qkv, residual = norm_linear(x, residual, before.weight, before.eps, layer.self_attn.qkv_proj.weight)
        x = self._attend(layer.self_attn, qkv, positions, kv_cache, context)
        x = linear(x, layer.self_attn.o_proj.weight)
        x, residual = norm_linear(x, residual, after.weight, after.eps, mlp.gate_up_proj.weight, gated=True)
        return linear(x, mlp.down_proj.weight), residual

    @staticmethod
    def _attend(attention: Qwen3Attention, qkv: Tensor, positions: Tensor, kv_cache: Tensor, context: Context,
                stream: Tensor | None = None, stream_eps: float = 0.0) -> Tensor:
        rotary, eps = attention.rotary, attention.q_norm.eps
        k_cache, v_cache = kv_cache
        q = norm_rope_store(qkv, positions, attention.q_norm.weight, attention.k_norm.weight, eps, rotary.cos, rotary.sin,
                            k_cache, v_cache, context.slot_mapping, stream, stream_eps)
        return attention.attn.backend.attend(q, k_cache, v_cache, context, attention.attn.scale).flatten(1)


def _fits_tiles(model: Qwen3ForCausalLM) -> bool:
    """Whether `kernels.prefill_linear` can do the model's projections, on the device where it is."""
    layer = model.model.layers[0]
    qkv, gate_up, head_dim = layer.self_attn.qkv_proj, layer.mlp.gate_up_proj.weight, len(layer.self_attn.q_norm.weight)
    narrow = gate_up.dtype.itemsize == 2 or not gate_up.is_cuda
    return (has_tma(gate_up.device) and narrow and qkv.bias is None and head_dim in (32, 64, 128)
            and gate_up.shape[1] % DEPTH == 0 and len(gate_up) % (2 * FEATURES) == 0)


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
