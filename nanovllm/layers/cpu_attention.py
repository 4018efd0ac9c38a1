"""Attention on a CPU by our own kernel: the whole batch in one call, keys and values where they lie in the cache."""

import ctypes

import torch
from torch import Tensor

from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.utils.context import Context

MOST_HEADS = 32  # query heads for each key/value head, that the kernel has room for


class CPUBackend(TorchBackend):
    """`kernels/cpu/attention.h`, a thread for each (tile of queries, key/value head).

    float32 or bfloat16, head_dim a multiple of 32 up to 256; more query heads for a key/value head than the kernel has room
    for attend as the reference does, and it stores as the reference does. Raises EngineError where there is no C++ compiler.

    Models of sizes that come out even run whole steps in the kernels beside it (`models.fused_cpu`); others run their plain
    modules around this attention.
    """

    name = "cpu"

    def __init__(self) -> None:
        from nanovllm.kernels.cpu import library

        self._kernels = library
        library.library()

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, context: Context, scale: float) -> Tensor:
        kernels, q = self._kernels, q.contiguous()
        num_tokens, num_heads, head_dim = q.shape
        _, block_size, num_kv_heads, _ = k_cache.shape
        if num_heads // num_kv_heads > MOST_HEADS:
            return super().attend(q, k_cache, v_cache, context, scale)
        shape = kernels.Shape(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, block_size=block_size,
                              scale=scale)
        tables, slots = context.block_tables, context.slot_mapping
        batch = kernels.Batch(num_tokens, len(tables), tables.shape[1], None, slots.data_ptr(), context.cu_seqlens_q.data_ptr(),
                              context.context_lens.data_ptr(), tables.data_ptr())
        out = torch.zeros_like(q)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (q, out, k_cache, v_cache))
        kernels.library()[f"attention_{kernels.type_name(q.dtype)}"](
            *pointers, ctypes.byref(shape), ctypes.byref(batch), torch.get_num_threads())
        return out
