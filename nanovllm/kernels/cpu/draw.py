"""`layers.sampler.draw` on a CPU in one pass over the scores, noise and all."""

import ctypes

import torch
from torch import Tensor

from nanovllm.kernels.cpu.library import library


def draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, masked: bool = False) -> Tensor:
    """logits: [num_rows, vocab_size]; temperatures, seeds, offsets: [num_rows] -> token ids [num_rows] int64.

    The noise is made of the same random bits as the plain form's; its logarithms may differ in the last place.
    """
    if logits.dtype != torch.float32 or logits.stride(1) != 1:
        logits = logits.float().contiguous()
    temperatures, seeds, offsets = temperatures.float().contiguous(), seeds.contiguous(), offsets.contiguous()
    num_rows, vocab_size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device="cpu")
    library().draw_float32(*(ctypes.c_void_p(t.data_ptr()) for t in (logits, temperatures, seeds, offsets, tokens)), num_rows,
                           logits.stride(0), vocab_size, masked, torch.get_num_threads())
    return tokens
