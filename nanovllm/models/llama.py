"""Llama 2 and 3.x, and SmolLM2: Qwen3 without norms on the heads, with biases wherever the config asks for them."""

from typing import Any, ClassVar

from nanovllm.layers.attention import AttentionBackend
from nanovllm.layers.rotary_embedding import RotaryEmbedding
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.models.qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3MLP


class LlamaForCausalLM(Qwen3ForCausalLM):
    """head_dim may be left out: the heads make up all of hidden_size."""

    config_defaults: ClassVar[dict[str, Any]] = {"head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6,
                                 "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
                                 "rope_theta": 10000.0, "eos_token_id": 2}

    @classmethod
    def sliding_window(cls, config: Any) -> int | None:
        return None  # Llama has none, whatever its config says

    def make_layer(self, index: int, config: Any, backend: AttentionBackend, rotary: RotaryEmbedding,
                   tp: TensorParallel, **factory: Any) -> Qwen3DecoderLayer:
        bias = bool(config.attention_bias)
        attention = Qwen3Attention(config, backend, rotary, tp, qkv_bias=bias, o_bias=bias, head_norms=False, **factory)
        return Qwen3DecoderLayer(config, attention, Qwen3MLP(config, tp, bool(config.mlp_bias), **factory), **factory)
