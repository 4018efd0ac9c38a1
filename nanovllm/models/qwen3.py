"""Qwen3, dense: the decoder-only transformer that this engine runs. Its relatives build other layers of the same parts."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from nanovllm.errors import CheckpointError
from nanovllm.layers.activation import SiluAndMul
from nanovllm.layers.attention import Attention, AttentionBackend
from nanovllm.layers.embed_head import ParallelLMHead, VocabParallelEmbedding
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from nanovllm.layers.rotary_embedding import RotaryEmbedding, longest_context
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.utils.checks import check
from nanovllm.utils.context import Context

# Keys of a config.json that change what is computed, with the value at which they do not.
UNSUPPORTED = {"vision_config": None, "clip_qkv": None,
               "attn_logit_softcapping": None, "final_logit_softcapping": None, "logit_scale": 1.0, "residual_multiplier": 1.0}


class Qwen3Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with a norm on every query and key head before RoPE.

    qkv_bias, o_bias: whether the projections add one; as the config's attention_bias says, but for relatives of Qwen3.
    head_norms: False in families that turn queries and keys as they are.
    """

    def __init__(self, config: Any, backend: AttentionBackend, rotary: RotaryEmbedding, tp: TensorParallel, *,
                 qkv_bias: bool, o_bias: bool, head_norms: bool = True, **factory: Any):
        super().__init__()
        self.head_dim = config.head_dim  # not hidden_size / heads: in Qwen3 the two are independent
        self.qkv_proj = QKVParallelLinear(config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
                                          self.head_dim, qkv_bias, tp, **factory)
        self.o_proj = RowParallelLinear(config.num_attention_heads * self.head_dim, config.hidden_size, o_bias, tp, **factory)
        self.q_norm, self.k_norm = (RMSNorm(self.head_dim, config.rms_norm_eps, **factory) if head_norms else nn.Identity()
                                    for _ in range(2))
        self.rotary = rotary
        self.attn = Attention(self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, self.head_dim, self.head_dim**-0.5, backend)

    def forward(self, positions: Tensor, x: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same; kv_cache: this layer's [2, num_blocks, block_size, heads, head_dim]."""
        q, k, v = self.qkv_proj(x).split(list(self.qkv_proj.sizes.values()), -1)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        q, k = self.rotary(positions, self.q_norm(q), self.k_norm(k))
        return self.o_proj(self.attn(q, k, v, kv_cache, context))


class Qwen3MLP(nn.Module):
    """SwiGLU feed-forward: gate and up in one product, then down."""

    def __init__(self, config: Any, tp: TensorParallel, bias: bool = False, **factory: Any):
        super().__init__()
        size = config.intermediate_size
        self.gate_up_proj = ColumnParallelLinear(config.hidden_size, {"gate": size, "up": size}, bias, tp, **factory)
        self.down_proj = RowParallelLinear(size, config.hidden_size, bias, tp, **factory)
        self.act_fn = SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)))


class Qwen3DecoderLayer(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: Any, attention: Qwen3Attention, mlp: nn.Module, **factory: Any):
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)

    def forward(self, positions: Tensor, x: Tensor, residual: Tensor | None, kv_cache: Tensor,
                context: Context) -> tuple[Tensor, Tensor]:
        """The sum x + residual is left to the next norm, which needs it anyway: both travel side by side."""
        x, residual = (self.input_layernorm(x), x) if residual is None else self.input_layernorm(x, residual)
        x = self.self_attn(positions, x, kv_cache, context)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


class Qwen3Model(nn.Module):
    """Embedding, layers, final norm. make_layer: (index, rotary embedding) -> layer."""

    def __init__(self, config: Any, make_layer: Callable[[int, RotaryEmbedding], nn.Module], tp: TensorParallel,
                 **factory: Any):
        super().__init__()
        rotary = RotaryEmbedding.from_config(config, factory.get("device"))
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, tp, **factory)
        self.layers = nn.ModuleList(make_layer(index, rotary) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)

    def forward(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        x, residual = self.embed_tokens(input_ids), None
        for layer, layer_cache in zip(self.layers, kv_cache):
            x, residual = layer(positions, x, residual, layer_cache, context)
        return self.norm(x, residual)[0]


class Qwen3ForCausalLM(nn.Module):
    """The model and its head. Owns the weights; the KV cache and the batch's layout are handed to every call.

    A relative of Qwen3 inherits all of it and says what differs: how it makes a layer, what its config means by a key that
    is not there, which layers have a window.

    packed_modules: checkpoint names whose tensors are parts of one packed weight here.
    config_defaults: what a config.json says that leaves the key out, as transformers' class for the family has it.
    config_aliases: other spellings of a key.

    Raises CheckpointError for configurations it would compute wrongly (see `check_config`).
    """

    packed_modules: ClassVar[dict[str, tuple[str, str]]] = {
        "q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v"),
        "gate_proj": ("gate_up_proj", "gate"), "up_proj": ("gate_up_proj", "up")}
    config_aliases: ClassVar[dict[str, str]] = {}
    config_defaults: ClassVar[dict[str, Any]] = {
        "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "tie_word_embeddings": False,
        "eos_token_id": None, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

    def __init__(self, config: Any, backend: AttentionBackend, tp: TensorParallel = TensorParallel(), *,
                 device: Any = None, dtype: Any = None):
        super().__init__()
        self.check_config(config)
        factory = dict(device=device, dtype=dtype)

        def make_layer(index: int, rotary: RotaryEmbedding) -> Qwen3DecoderLayer:
            return self.make_layer(index, config, backend, rotary, tp, **factory)

        self.model = Qwen3Model(config, make_layer, tp, **factory)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, tp, **factory)
        self.tied = bool(config.tie_word_embeddings)
        if self.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise CheckpointError for what this family would compute wrongly: other activations, windows that slide within
        max_model_len (where the config has one, else within the longest context), keys of other families."""
        check(config.hidden_act == "silu", "hidden_act", config.hidden_act, "'silu'", "use a checkpoint with this activation",
              error=CheckpointError)
        for key, neutral in UNSUPPORTED.items():
            value = getattr(config, key, neutral)
            check(value in (None, neutral), key, value, f"absent or {neutral}", "what it asks for is not implemented: use a "
                  "checkpoint without it", error=CheckpointError)
        window, longest = cls.sliding_window(config), getattr(config, "max_model_len", None) or longest_context(config)
        check(window is None or longest <= window, "sliding_window", window, f"at least max_model_len={longest}",
              f"layers that slide are not implemented, but within the window they need not: set max_model_len={window}",
              error=CheckpointError)

    @classmethod
    def sliding_window(cls, config: Any) -> int | None:
        """How many tokens the layers with a window see; None when none has one."""
        if not getattr(config, "use_sliding_window", False):
            return None
        kinds = getattr(config, "layer_types", None)
        slides = "sliding_attention" in kinds if kinds else config.max_window_layers < config.num_hidden_layers
        return config.sliding_window if slides else None

    def make_layer(self, index: int, config: Any, backend: AttentionBackend, rotary: RotaryEmbedding,
                   tp: TensorParallel, **factory: Any) -> Qwen3DecoderLayer:
        """Layer number `index`."""
        bias = bool(config.attention_bias)
        attention = Qwen3Attention(config, backend, rotary, tp, qkv_bias=bias, o_bias=bias, **factory)
        return Qwen3DecoderLayer(config, attention, Qwen3MLP(config, tp, **factory), **factory)

    def forward(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """input_ids, positions: [num_tokens]; kv_cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim].

        Returns the final hidden states, [num_tokens, hidden_size].
        """
        return self.model(input_ids, positions, kv_cache, context)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size] -> [num_rows, vocab_size]."""
        return self.lm_head(hidden)
