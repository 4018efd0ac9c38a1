"""A dense model of `models/` on a CPU in few calls: steps of a few tokens as one, others with torch's products."""

import ctypes
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovllm.kernels.cpu.library import Batch, Shape, library, type_name
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.linear import ReplicatedLinear
from nanovllm.models.qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3MLP
from nanovllm.utils.context import Context

FEW_TOKENS = 8  # up to here a product is bound by reading its weight, and to call it costs as much as to compute it
WIDTH = 16      # numbers that the kernels take at a time


def fits(model: Qwen3ForCausalLM) -> bool:
    """Whether `FusedCPUModel` can run it: a whole dense model, of sizes that come out even."""
    layers = [cast(Qwen3DecoderLayer, layer) for layer in model.model.layers]
    if model.lm_head.tp.size > 1 or not all(isinstance(layer.mlp, Qwen3MLP) for layer in layers):
        return False
    inner = cast(Qwen3MLP, layers[0].mlp).down_proj.weight.shape[1]
    return model.lm_head.weight.shape[1] % WIDTH == inner % WIDTH == 0


class FusedCPUModel:
    """Runs the layers of a model of `models/` with the kernels of `nanovllm.kernels.cpu`.

    Owns copies of the weights where they can be read faster: a float32 model whose weights are all bfloat16 numbers, as
    checkpoints' mostly are, is read as bfloat16 by steps of a few tokens. Each is exactly the same number in half the bytes.
    """

    def __init__(self, model: Qwen3ForCausalLM, block_size: int):
        self.model, self.library = model, library()
        layers = [cast(Qwen3DecoderLayer, layer) for layer in model.model.layers]
        attention, mlp = layers[0].self_attn, cast(Qwen3MLP, layers[0].mlp)
        self.rotary = attention.rotary
        self.dtype, self.hidden = model.lm_head.weight.dtype, model.lm_head.weight.shape[1]
        self.inner = mlp.down_proj.weight.shape[1]
        self.num_heads, self.head_dim = attention.attn.num_heads, attention.head_dim
        self.shape = Shape(len(layers), self.hidden, self.num_heads, attention.attn.num_kv_heads, self.head_dim, self.inner,
                           block_size, layers[0].input_layernorm.eps, attention.attn.scale, 0, self.rotary.cos.data_ptr(),
                           self.rotary.sin.data_ptr())
        products = [p for layer in layers for p in _products(layer)]
        packs = all(_is_bfloat16(p.weight) for p in products) and _is_bfloat16(model.lm_head.weight)
        self.weight_dtype = torch.bfloat16 if packs else self.dtype
        self._kept: list[Tensor] = []  # what the pointers below point to
        self.layers = [_LayerWeights(self, layer) for layer in layers]
        self.final_norm = self.keep(model.model.norm.weight, torch.float32)
        self.head = self.keep(model.lm_head.weight, self.weight_dtype)
        pointers = [pointer for layer in self.layers for pointer in layer.pointers]
        self.table = (ctypes.c_void_p * len(pointers))(*pointers)
        cache, weights = type_name(self.dtype), type_name(self.weight_dtype)
        self._few, self._product = self.library[f"few_{cache}_{weights}"], self.library[f"product_{weights}"]
        self._norm, self._store_heads, self._attention, self._gate = (
            self.library[f"{name}_{cache}"] for name in ("norm", "store_heads", "attention", "gate"))

    def keep(self, weight: Tensor, dtype: torch.dtype) -> int:
        """The address of the numbers in this dtype, which stay there as long as the model does."""
        self._kept.append(weight.detach().to(dtype).contiguous())
        return self._kept[-1].data_ptr()

    def __call__(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """As the plain model's forward: the final hidden states, [num_tokens, hidden_size]."""
        x = F.embedding(input_ids, self.model.model.embed_tokens.weight)
        threads = torch.get_num_threads()
        self.shape.layer_stride = kv_cache.stride(1)
        tables = context.block_tables
        batch = Batch(len(x), len(tables), tables.shape[1], positions.data_ptr(), context.slot_mapping.data_ptr(),
                      context.cu_seqlens_q.data_ptr(), context.context_lens.data_ptr(), tables.data_ptr())
        if len(x) <= FEW_TOKENS:
            x = x.float()
            self._few(ctypes.byref(self.shape), ctypes.byref(batch), self.table, ctypes.c_void_p(self.final_norm), _at(x),
                      _at(kv_cache), threads)
            return x.to(self.dtype)
        added, normed = None, torch.empty_like(x)
        for layer, (k_cache, v_cache) in zip(self.layers, kv_cache):
            self.norm(x, added, layer.norm, normed, threads)
            qkv = layer.qkv(normed)
            q = x.new_empty(len(x), self.num_heads * self.head_dim)
            self._store_heads(_at(qkv), *layer.head_norms, ctypes.byref(self.shape), ctypes.byref(batch), _at(q),
                              _at(k_cache), _at(v_cache), threads)
            attended = torch.zeros_like(q)
            self._attention(_at(q), _at(attended), _at(k_cache), _at(v_cache), ctypes.byref(self.shape), ctypes.byref(batch),
                            threads)
            self.norm(x, layer.o(attended), layer.norm2, normed, threads)
            gate_up = layer.gate_up(normed)
            inner = x.new_empty(len(x), self.inner)
            self._gate(_at(gate_up), _at(inner), ctypes.c_long(len(x)), self.inner, threads)
            added = layer.down(inner)
        self.norm(x, added, ctypes.c_void_p(self.final_norm), normed, threads)
        return normed

    def norm(self, x: Tensor, added: Tensor | None, weight: ctypes.c_void_p, out: Tensor, threads: int) -> None:
        """x += added, and out = RMSNorm(x); all [num_tokens, hidden_size]."""
        self._norm(_at(x), None if added is None else _at(added), weight, ctypes.c_float(self.shape.eps), _at(out),
                   ctypes.c_long(len(x)), self.hidden, threads)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """As the plain model's: [num_rows, vocab_size]."""
        if len(hidden) > FEW_TOKENS:
            return self.model.compute_logits(hidden)
        x = hidden.float().contiguous()
        vocab_size = self.model.lm_head.weight.shape[0]
        logits = torch.empty(len(x), vocab_size, dtype=torch.float32)
        self._product(_at(x), ctypes.c_void_p(self.head), _at(logits), len(x), self.hidden, vocab_size, torch.get_num_threads())
        return logits.to(self.dtype)


class _LayerWeights:
    """One layer read once: its products for many tokens, and its addresses in the order of `Layer` in step.cpp."""

    def __init__(self, owner: FusedCPUModel, layer: Qwen3DecoderLayer):
        def floats(weight: Tensor | None) -> int | None:
            return None if weight is None else owner.keep(weight, torch.float32)

        self.qkv, self.o, self.gate_up, self.down = _products(layer)
        heads = layer.self_attn.q_norm, layer.self_attn.k_norm
        q_norm, k_norm = (floats(norm.weight if isinstance(norm, RMSNorm) else None) for norm in heads)
        norm, norm2 = floats(layer.input_layernorm.weight), floats(layer.post_attention_layernorm.weight)
        self.norm, self.norm2 = ctypes.c_void_p(norm), ctypes.c_void_p(norm2)
        self.head_norms = ctypes.c_void_p(q_norm), ctypes.c_void_p(k_norm)

        def weight_and_bias(product: ReplicatedLinear) -> tuple[int, int | None]:
            return owner.keep(product.weight, owner.weight_dtype), floats(product.bias)

        qkv, o, gate_up, down = map(weight_and_bias, _products(layer))
        self.pointers = [norm, *qkv, q_norm, k_norm, *o, norm2, *gate_up, *down]


def _products(layer: Qwen3DecoderLayer) -> tuple[ReplicatedLinear, ...]:
    mlp = cast(Qwen3MLP, layer.mlp)
    return layer.self_attn.qkv_proj, layer.self_attn.o_proj, mlp.gate_up_proj, mlp.down_proj


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _is_bfloat16(weight: Tensor) -> bool:
    """Whether bfloat16 holds every number of it exactly."""
    return bool((weight.bfloat16().to(weight.dtype) == weight).all())
