"""Qwen2 and 2.5: Qwen3 without norms on the heads, and with biases on queries, keys and values."""

from typing import Any, ClassVar

from nanovllm.layers.attention import AttentionBackend
from nanovllm.layers.rotary_embedding import RotaryEmbedding
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.models.qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3MLP


class Qwen2ForCausalLM(Qwen3ForCausalLM):
    """Here, too, the heads make up all of hidden_size unless the config has a head_dim."""

    config_defaults: ClassVar[dict[str, Any]] = Qwen3ForCausalLM.config_defaults | {"head_dim": None, "rope_theta": 10000.0}

    def make_layer(self, index: int, config: Any, backend: AttentionBackend, rotary: RotaryEmbedding,
                   tp: TensorParallel, **factory: Any) -> Qwen3DecoderLayer:
        attention = Qwen3Attention(config, backend, rotary, tp, qkv_bias=True, o_bias=False, head_norms=False, **factory)
        return Qwen3DecoderLayer(config, attention, Qwen3MLP(config, tp, **factory), **factory)
