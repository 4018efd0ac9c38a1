"""A model of `models/` on a CPU: each step, of however many tokens, as one call of `nanovllm.kernels.cpu`."""

import ctypes
from array import array
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovllm.kernels.cpu import library
from nanovllm.kernels.cpu.library import FLOATS, HALVES, PANEL, TILES, Batch, Draws, Experts, Layer, Shape, Weight
from nanovllm.layers.cpu_attention import MOST_HEADS
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.models.qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3MLP
from nanovllm.models.qwen3_moe import Qwen3MoeBlock
from nanovllm.utils.context import Context

WIDTH = 16       # numbers that the kernels take at a time
BYTES_OF_A_CORE = 4 << 20  # a layer's weights that its cache holds, about; then each thread takes tokens of its own


def fits(model: Qwen3ForCausalLM) -> bool:
    """Whether `FusedCPUModel` can run it: a whole model, of sizes that come out even."""
    layers = [cast(Qwen3DecoderLayer, layer) for layer in model.model.layers]
    attention = layers[0].self_attn.attn
    return (model.lm_head.tp.size == 1 and all(isinstance(layer.mlp, Qwen3MLP | Qwen3MoeBlock) for layer in layers)
            and model.lm_head.weight.shape[1] % WIDTH == 0 and all(_inner(layer) % WIDTH == 0 for layer in layers)
            and attention.num_heads // attention.num_kv_heads <= MOST_HEADS)


class FusedCPUModel:
    """Runs the layers of a model of `models/` with the kernels of `nanovllm.kernels.cpu`.

    Owns the weights of its products, in the order in which the kernels read them. A float32 model whose weights are all
    bfloat16 numbers, as checkpoints' mostly are, has them as bfloat16: exactly the same numbers in half the bytes, which
    the matrix unit of a CPU that has one (Intel's AMX) multiplies without rounding anything. What a token's row comes to
    does not depend on the rows beside it.

    takes_over: whether the plain modules' own copies of those weights are given up.
    """

    def __init__(self, model: Qwen3ForCausalLM, block_size: int, takes_over: bool = False):
        self.model, self.library = model, library.library()
        layers = [cast(Qwen3DecoderLayer, layer) for layer in model.model.layers]
        attention = layers[0].self_attn
        self.rotary = attention.rotary
        self.dtype, (self.vocab_size, self.hidden) = model.lm_head.weight.dtype, model.lm_head.weight.shape
        self.parts = 2 if self.dtype is torch.bfloat16 else 3  # bfloat16 numbers that an activation is the sum of
        inner = max((_inner(layer) for layer in layers if isinstance(layer.mlp, Qwen3MLP)), default=0)
        mlp_numbers = max(sum(weight.numel() for weight in _mlp_weights(layer)) for layer in layers)
        self.shape = Shape(len(layers), self.hidden, attention.attn.num_heads, attention.attn.num_kv_heads, attention.head_dim,
                           inner, block_size, layers[0].input_layernorm.eps, attention.attn.scale, 0, BYTES_OF_A_CORE,
                           mlp_numbers, self.rotary.cos.data_ptr(), self.rotary.sin.data_ptr())
        weights = [weight for layer in layers for weight in (layer.self_attn.qkv_proj.weight, layer.self_attn.o_proj.weight,
                                                             *_mlp_weights(layer))]
        packs = all(map(_is_bfloat16, [model.lm_head.weight, *weights]))
        self.form = FLOATS if not packs else TILES if self.library.has_tiles() else HALVES
        self._kept: list[Tensor] = []  # what the pointers below point to
        self._arrays: list[ctypes.Array[Weight]] = []
        self.layers = (Layer * len(layers))(*map(self._layer, layers))
        self.final_norm = ctypes.c_void_p(self._keep(model.model.norm.weight))
        self.head = self._weight(model.lm_head.weight, None)
        self._step, self._decode, self._draft = (self.library[f"{name}_{library.type_name(self.dtype)}"]
                                                 for name in ("step", "decode", "draft"))
        if takes_over:
            for weight in weights:
                weight.data = weight.new_empty(0)

    def __call__(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """As the plain model's forward: the final hidden states, [num_tokens, hidden_size]."""
        x = F.embedding(input_ids, self.model.model.embed_tokens.weight).float()
        tables = context.block_tables
        batch = Batch(len(x), len(tables), tables.shape[1], positions.data_ptr(), context.slot_mapping.data_ptr(),
                      context.cu_seqlens_q.data_ptr(), context.context_lens.data_ptr(), tables.data_ptr())
        self.shape.layer_stride = kv_cache.stride(1)
        self._step(ctypes.byref(self.shape), ctypes.byref(batch), self.layers, self.final_norm, _at(x), _at(kv_cache),
                   self.form, torch.get_num_threads())
        return x.to(self.dtype)

    def decode(self, batch: Batch, draws: Draws, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """A step in one call. draws: its input_ids, rows, num_rows and, unless all are greedy, temperatures, seeds and offsets
        are filled in; see decode.h.

        Returns the rows' logits, [num_rows, vocab_size], and the token drawn from each, [num_rows] int64: greedily of equally
        likely ones the first, and -1 where the logits are not all finite.
        """
        tokens = torch.empty(draws.num_rows, dtype=torch.int64, device="cpu")
        logits, draws.tokens = self._fill_in(draws, kv_cache), tokens.data_ptr()
        self._decode(ctypes.byref(self.shape), ctypes.byref(batch), self.layers, self.final_norm, ctypes.byref(draws),
                     _at(kv_cache), self.form, torch.get_num_threads())
        return logits, tokens

    def draft(self, batch: Batch, draws: Draws, limits: "array[int]", kv_cache: Tensor) -> list[list[int]]:
        """As `decode`, of steps whose sequences draw one token each, and on from there, each token fed back.

        limits: [num_seqs], array("i"), how many tokens each sequence draws. Returns those. They end early, with -1, where
        logits are not all finite.
        """
        drafts = torch.empty(max(limits), len(limits), dtype=torch.int64, device="cpu")
        logits = self._fill_in(draws, kv_cache)  # which the call writes to
        self._draft(ctypes.byref(self.shape), ctypes.byref(batch), self.layers, self.final_norm, ctypes.byref(draws),
                    ctypes.c_void_p(limits.buffer_info()[0]), len(drafts), _at(drafts), _at(kv_cache), self.form,
                    torch.get_num_threads())
        del logits
        return [of_sequence[:limit] for of_sequence, limit in zip(drafts.t().tolist(), limits)]

    def _fill_in(self, draws: Draws, kv_cache: Tensor) -> Tensor:
        """What this model adds to draws; returns where their logits will be."""
        width = -(-self.vocab_size // PANEL) * PANEL
        logits = torch.empty(draws.num_rows, width, dtype=self.dtype, device="cpu")
        draws.embedding, draws.logits = self.model.model.embed_tokens.weight.data_ptr(), logits.data_ptr()
        draws.head, draws.vocab_size, draws.stride = self.head, self.vocab_size, width
        self.shape.layer_stride = kv_cache.stride(1)
        return logits[:, :self.vocab_size]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """As the plain model's: [num_rows, vocab_size]."""
        x = hidden.float().contiguous()
        width = -(-self.vocab_size // PANEL) * PANEL
        logits = torch.empty(len(x), width, dtype=torch.float32)
        self.library.product_of(_at(x), ctypes.byref(self.head), _at(logits), ctypes.c_long(len(x)), ctypes.c_long(width),
                                self.form, self.parts, torch.get_num_threads())
        return logits[:, :self.vocab_size].to(self.dtype)

    def _layer(self, layer: Qwen3DecoderLayer) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm, attention.q_norm, attention.k_norm, layer.post_attention_layernorm
        whole = Layer(*(self._keep(norm.weight) if isinstance(norm, RMSNorm) else None for norm in norms),
                      *(self._weight(product.weight, product.bias) for product in (attention.qkv_proj, attention.o_proj)))
        if isinstance(mlp, Qwen3MoeBlock):
            whole.experts = self._experts(mlp)
        else:
            dense = cast(Qwen3MLP, mlp)
            whole.gate_up, whole.down = (self._weight(product.weight, product.bias)
                                         for product in (dense.gate_up_proj, dense.down_proj))
        return whole

    def _experts(self, block: Qwen3MoeBlock) -> Experts:
        experts = block.experts
        gate_up, down = ((Weight * experts.num_experts)(*(self._weight(weight, None) for weight in weights))
                         for weights in (experts.gate_up_proj, experts.down_proj))
        self._arrays += [gate_up, down]
        return Experts(self._weight(block.gate.weight, block.gate.bias), gate_up, down, experts.num_experts, block.num_active,
                       block.normalize)

    def _weight(self, weight: Tensor, bias: Tensor | None) -> Weight:
        self._kept.append(library.panels_of(weight, self.form))
        features = -(-len(weight) // WIDTH) * WIDTH
        return Weight(self._kept[-1].data_ptr(), None if bias is None else self._keep(bias), weight.shape[1], features)

    def _keep(self, numbers: Tensor) -> int:
        """The address of these numbers as float32, which stay there as long as the model does."""
        self._kept.append(numbers.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def _mlp_weights(layer: Qwen3DecoderLayer) -> tuple[Tensor, ...]:
    if isinstance(layer.mlp, Qwen3MoeBlock):
        return layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj
    mlp = cast(Qwen3MLP, layer.mlp)
    return mlp.gate_up_proj.weight, mlp.down_proj.weight


def _inner(layer: Qwen3DecoderLayer) -> int:
    """Features between gate and down, of an expert where there are some."""
    return int(_mlp_weights(layer)[-1].shape[-1])


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _is_bfloat16(weight: Tensor) -> bool:
    """Whether bfloat16 holds every number of it exactly."""
    return bool((weight.bfloat16().to(weight.dtype) == weight).all())
