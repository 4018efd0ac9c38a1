"""Any family of `models/` in few launches: what the plain modules compute, with a kernel for each stretch between products."""

import sys
from copy import copy
from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor

from nanovllm.kernels.device import has_tma
from nanovllm.kernels.linear import linear, norm_linear
from nanovllm.kernels.norm_rope_store import norm_rope_store
from nanovllm.kernels.prefill_linear import inverse_rms, qkv_linear
from nanovllm.kernels.rms_norm import rms_norm
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.models.fused_mlp import FusedExperts, FusedMLP, add_few, add_product, fits_depth, fold
from nanovllm.models.qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3MLP
from nanovllm.models.qwen3_moe import Qwen3MoeBlock
from nanovllm.utils.context import Context

# So few tokens make a product a mere read of its weight, and our kernels read it faster than cuBLAS. Each number is a
# kernel of its own to compile, so these are the sizes in which decode graphs come, not every one below. A program reads
# every token's whole input beside its part of the weight, so several tokens pay only while they are narrow: at hidden size
# 4096 an H200 took 5.1 ms for two tokens, which cuBLAS multiplies in 4.9.
FEW_TOKENS, FEW_INPUTS = (1, 2, 4), 4096  # FEW_INPUTS: of all tokens together, where there are several
PROMPT_TOKENS = 1024  # from so many on every multiprocessor gets its two tiles of 128 tokens by one head


class FusedModel:
    """Runs the layers of a model of `models/` with the kernels of `nanovllm.kernels`.

    Owns nothing: the weights stay the model's. A layer takes seven launches instead of some thirty.
    """

    def __init__(self, model: Qwen3ForCausalLM):
        self.model = model
        self.layers = [FusedLayer(cast(Qwen3DecoderLayer, layer)) for layer in model.model.layers]
        hidden_size = model.lm_head.weight.shape[1]
        narrow = tuple(n for n in FEW_TOKENS if n == 1 or n * hidden_size <= FEW_INPUTS)
        self.few_tokens = narrow if all(layer.has_no_bias for layer in self.layers) else ()
        self.prompt_tokens = PROMPT_TOKENS if all(layer.fits_tiles() for layer in self.layers) else sys.maxsize

    def of_few_layers(self) -> "FusedModel":
        """The same, with no more layers than launch every kernel: one of each kind."""
        small = copy(self)
        small.layers = list({type(layer.mlp): layer for layer in self.layers}.values())
        return small

    def __call__(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """As the plain model's forward: the final hidden states, [num_tokens, hidden_size]."""
        model, num_tokens = self.model.model, len(input_ids)
        stream = model.embed_tokens(input_ids)
        few, prompt = num_tokens in self.few_tokens, num_tokens >= self.prompt_tokens
        for layer, layer_cache in zip(self.layers, kv_cache):
            (layer.few if few else layer.prompt if prompt else layer.many)(positions, stream, layer_cache, context)
        return rms_norm(stream, None, model.norm.weight, model.norm.eps)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """As the plain model's: [num_rows, vocab_size]."""
        head = self.model.lm_head
        few = len(hidden) in self.few_tokens
        return head.tp.all_gather(linear(hidden, head.weight)) if few else self.model.compute_logits(hidden)


class FeedForward(Protocol):
    """The second half of a layer: the norm, what stands behind it, and the sum with the residual stream."""

    has_no_bias: bool  # which would keep `few` from being used

    def fits_tiles(self) -> bool:
        """Whether `prompt` can be used, on the device where it is."""

    def many(self, stream: Tensor) -> None:
        """stream: the residual stream, [num_tokens, hidden_size], taken through it in place."""

    def prompt(self, stream: Tensor) -> None:
        """As `many`, for a thousand tokens or more."""

    def few(self, stream: Tensor) -> None:
        """As `many`, for a few tokens."""


class FusedLayer:
    """One layer, its modules read once, and three ways to run it that differ in where a product's surroundings are computed.

    `many` is the usual one. A few tokens go another way (`few`), where a launch costs as much as the work, and so do a
    thousand and more (`prompt`), where what costs is to write a result and read it again.

    Two things a product can do on the way need no launch of their own. It adds its result to the residual stream. And the
    norm before a projection is 1 / rms of the token's row, one number, times a weight for each input: the weight goes into
    the projection's own once, when the layer is read, and the number, like a bias, into whatever reads the product.
    """

    def __init__(self, layer: Qwen3DecoderLayer):
        attention = layer.self_attn
        self.norm, self.qkv, self.o = layer.input_layernorm, attention.qkv_proj, attention.o_proj
        self.attend, self.scale, self.head_dim = attention.attn.backend.attend, attention.attn.scale, attention.head_dim
        # What the kernels want to know between the projection and the cache.
        norms = attention.q_norm, attention.k_norm
        q_weight, k_weight = (norm.weight if isinstance(norm, RMSNorm) else None for norm in norms)
        self.turn: tuple[Tensor | None, Tensor | None, float, Tensor, Tensor] = (
            q_weight, k_weight, getattr(norms[0], "eps", 0.0), attention.rotary.cos, attention.rotary.sin)
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        self.mlp: FeedForward = (
            FusedMLP(norm, mlp) if isinstance(mlp, Qwen3MLP) else FusedExperts(norm, cast(Qwen3MoeBlock, mlp)))
        fold(self.norm, self.qkv)

    @property
    def has_no_bias(self) -> bool:
        """Whether `few` can run it."""
        return self.o.bias is None and self.mlp.has_no_bias

    def fits_tiles(self) -> bool:
        """Whether `kernels.prefill_linear` can do the layer's projections, on the device where it is."""
        weight = self.qkv.weight
        narrow = weight.dtype.itemsize == 2 or not weight.is_cuda
        return (has_tma(weight.device) and narrow and self.head_dim in (32, 64, 128) and fits_depth(weight)
                and self.mlp.fits_tiles())

    def many(self, positions: Tensor, stream: Tensor, kv_cache: Tensor, context: Context) -> None:
        """stream: the residual stream, [num_tokens, hidden_size], taken through the layer in place."""
        qkv = F.linear(stream, self.qkv.weight)
        add_product(stream, self.o, self._attention(qkv, positions, kv_cache, context, stream))
        self.mlp.many(stream)

    def prompt(self, positions: Tensor, stream: Tensor, kv_cache: Tensor, context: Context) -> None:
        """As `many`, for so many tokens that what stands behind a product is best done before its result is written."""
        k_cache, v_cache = kv_cache
        q = qkv_linear(stream, self.qkv.weight, inverse_rms(stream, self.norm.eps), positions, *self.turn, k_cache, v_cache,
                       context.slot_mapping, self.qkv.bias)
        add_product(stream, self.o, self.attend(q, k_cache, v_cache, context, self.scale).flatten(1))
        self.mlp.prompt(stream)

    def few(self, positions: Tensor, stream: Tensor, kv_cache: Tensor, context: Context) -> None:
        """As `many`, for so few tokens that a launch costs as much as the work."""
        qkv = norm_linear(stream, self.norm.eps, self.qkv.weight)
        add_few(stream, self.o, self._attention(qkv, positions, kv_cache, context))
        self.mlp.few(stream)

    def _attention(self, qkv: Tensor, positions: Tensor, kv_cache: Tensor, context: Context, stream: Tensor | None = None
                   ) -> Tensor:
        """From the projection's output, of the stream as it is if that is given, to attention's, a row per token."""
        k_cache, v_cache = kv_cache
        q = norm_rope_store(qkv, positions, *self.turn, k_cache, v_cache, context.slot_mapping, stream, self.norm.eps,
                            self.qkv.bias)
        return self.attend(q, k_cache, v_cache, context, self.scale).flatten(1)
