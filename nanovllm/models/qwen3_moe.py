"""Qwen3-MoE: Qwen3 with a router and experts in place of the feed-forward network."""

from typing import Any, ClassVar

from torch import Tensor, nn

from nanovllm.errors import CheckpointError
from nanovllm.layers.attention import AttentionBackend
from nanovllm.layers.linear import ReplicatedLinear
from nanovllm.layers.moe import Experts, route
from nanovllm.layers.rotary_embedding import RotaryEmbedding
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.models.qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3MLP
from nanovllm.utils.checks import check


class Qwen3MoeBlock(nn.Module):
    """The router picks a few experts for each token; the token's result is the sum of theirs, by the router's weights."""

    def __init__(self, config: Any, tp: TensorParallel, **factory: Any):
        super().__init__()
        self.num_active, self.normalize = config.num_experts_per_tok, bool(config.norm_topk_prob)
        self.gate = ReplicatedLinear(config.hidden_size, config.num_experts, **factory)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size, tp, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same."""
        out: Tensor = self.experts(x, *route(self.gate(x), self.num_active, self.normalize))
        return out


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """Experts stand in every layer number `decoder_sparse_step` but those of `mlp_only_layers`, which are Qwen3's own."""

    config_aliases: ClassVar[dict[str, str]] = {"num_local_experts": "num_experts"}  # as transformers 5 saves it
    config_defaults: ClassVar[dict[str, Any]] = Qwen3ForCausalLM.config_defaults | {
        "head_dim": None, "rope_theta": 10000.0, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": None}

    @classmethod
    def check_config(cls, config: Any) -> None:
        super().check_config(config)
        check(1 <= config.num_experts_per_tok <= config.num_experts, "num_experts_per_tok", config.num_experts_per_tok,
              f"1 to num_experts={config.num_experts}", "copy the model's own config.json again", error=CheckpointError)

    @classmethod
    def sliding_window(cls, config: Any) -> int | None:
        window: int | None = config.sliding_window if getattr(config, "use_sliding_window", False) else None
        return window  # of all layers: transformers asks for no max_window_layers here

    def make_layer(self, index: int, config: Any, backend: AttentionBackend, rotary: RotaryEmbedding,
                   tp: TensorParallel, **factory: Any) -> Qwen3DecoderLayer:
        bias = bool(config.attention_bias)
        attention = Qwen3Attention(config, backend, rotary, tp, qkv_bias=bias, o_bias=bias, **factory)
        is_sparse = index not in (config.mlp_only_layers or ()) and (index + 1) % config.decoder_sparse_step == 0
        mlp = Qwen3MoeBlock(config, tp, **factory) if is_sparse else Qwen3MLP(config, tp, **factory)
        return Qwen3DecoderLayer(config, attention, mlp, **factory)
