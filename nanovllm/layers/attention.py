"""Attention over a paged cache: one signature, and the choice among the backends that compute it.

Every backend stores this step's keys and values first and then reads everything, the old and the new, from the cache,
so a prompt chunk, a prefix hit and a decode step are one case.
"""

import os
from typing import Protocol

import torch
from torch import Tensor, nn

from nanovllm.errors import InvalidArgument
from nanovllm.layers.attention_backends import FlashAttnBackend, TorchBackend, TritonBackend, import_error
from nanovllm.layers.batched_attention import BatchedTorchBackend
from nanovllm.layers.cpu_attention import CPUBackend
from nanovllm.utils.context import Context


class AttentionBackend(Protocol):
    """Stores keys and values in the paged cache and attends over it.

    Keeps no state between calls and never allocates blocks: where things lie in the cache is decided by the block
    manager and arrives in the `Context`.
    """

    name: str

    def store(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
        """Write k, v `[num_tokens, num_kv_heads, head_dim]` to their slots; slot -1 is skipped.

        k_cache, v_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, written in place.
        """

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, context: Context, scale: float) -> Tensor:
        """Attend with q `[num_tokens, num_heads, head_dim]`; returns the same shape.

        Rows of a padding sequence (context length 0) come back as zeros.
        """


def compute_capability(device: torch.device) -> tuple[int, int]:
    """The GPU's generation: (8, 0) is Ampere, the first with enough shared memory for our tiles."""
    return torch.cuda.get_device_capability(device)


def _why_not(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int) -> str | None:
    """What keeps backend `name` from running here, with the remedy; None when nothing does."""
    if name == "torch":
        return None
    if name == "cpu":
        if device.type != "cpu":
            return f"it needs device='cpu', not {str(device)!r}; use 'triton' or 'torch'"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"dtype {dtype} is not float32 or bfloat16; use one of them or 'torch'"
        if head_dim % 32 or head_dim > 256:
            return f"head_dim {head_dim} is not a multiple of 32 up to 256; use 'torch'"
        return None
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"it needs a CUDA device, not {str(device)!r}; use attention_backend='torch'"
    if device.type == "cuda" and (found := compute_capability(device)) < (8, 0):
        return f"compute capability {found[0]}.{found[1]} is below 8.0; use attention_backend='torch'"
    if name == "triton":
        if head_dim not in (16, 32, 64, 128):
            return f"head_dim {head_dim} is not one of 16, 32, 64, 128; use 'torch'"
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"dtype {dtype} is not float32, float16 or bfloat16; use one of them or 'torch'"
        if error := import_error("triton"):
            return f"triton cannot be imported ({error}); `pip install triton` or use 'torch'"
        return None
    if dtype not in (torch.float16, torch.bfloat16):
        return f"dtype {dtype} is not float16 or bfloat16; use dtype='bfloat16' or 'triton'"
    if head_dim not in (64, 128):
        return f"head_dim {head_dim} is not 64 or 128, the sizes tested with it; use 'triton'"
    if block_size % 256 != 0:
        return f"block size {block_size} is not a multiple of 256; set kvcache_block_size=256 or use 'triton'"
    if error := import_error("flash_attn"):
        return (
            f"flash_attn cannot be imported ({error}); `pip install flash-attn "
            "--no-build-isolation` for this torch and CUDA, or use 'triton'"
        )
    return None


def select_backend(
    name: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int, block_size: int
) -> AttentionBackend:
    """The backend called `name`; "auto" takes the first of triton, flash_attn, torch that fits.

    The order is measured, not a matter of taste (H200, bf16, `benchmarks/results/`): ours decodes 256 sequences of about
    700 tokens in 0.178 ms to flash-attn's 0.198, 16 in 0.019 to 0.034, one in 0.007 to 0.017, and is level in prefill.

    Raises InvalidArgument, naming what is missing and the remedy, when `name` is unknown or cannot
    run with this device, dtype, head size or block size.
    """
    device = torch.device(device)
    plain = TorchBackend if device.type == "cpu" else BatchedTorchBackend
    kinds: dict[str, type[AttentionBackend]] = {"triton": TritonBackend, "flash_attn": FlashAttnBackend, "torch": plain,
                                               "cpu": CPUBackend}
    if name == "auto":
        # The interpreter is for checking kernels, so a CPU never gets Triton unasked.
        names = [name for name in kinds if name != "cpu"] if device.type == "cuda" else ["torch"]
        fits = (n for n in names if not _why_not(n, device, dtype, head_dim, block_size))
        return kinds[next(fits)]()
    if name not in kinds:
        raise InvalidArgument(f"attention_backend {name!r} is unknown; use one of 'auto', " + ", ".join(repr(n) for n in kinds))
    if reason := _why_not(name, device, dtype, head_dim, block_size):
        raise InvalidArgument(f"attention_backend {name!r} cannot be used: {reason}")
    return kinds[name]()


class Attention(nn.Module):
    """One layer's attention: stores this step's keys and values, then reads the whole cache.

    Owns no weights and no cache: the projections and the cache belong to others. Never looks at what kind of step it
    is in; the `Context` says that to the backend.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        backend: AttentionBackend,
    ):
        super().__init__()
        if num_heads % num_kv_heads != 0:
            raise InvalidArgument(
                f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}; "
                "every key/value head must serve the same number of query heads"
            )
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.scale = scale
        self.backend = backend

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv_cache_layer: Tensor, context: Context) -> Tensor:
        """q: `[num_tokens, num_heads, head_dim]`; k, v: `[num_tokens, num_kv_heads, head_dim]`.

        kv_cache_layer: `[2, num_blocks, block_size, num_kv_heads, head_dim]`, written in place.
        Returns `[num_tokens, num_heads * head_dim]`.
        """
        q = q.view(-1, self.num_heads, self.head_dim)
        k = k.view(-1, self.num_kv_heads, self.head_dim)
        v = v.view(-1, self.num_kv_heads, self.head_dim)
        k_cache, v_cache = kv_cache_layer
        self.backend.store(k, v, k_cache, v_cache, context.slot_mapping)
        return self.backend.attend(q, k_cache, v_cache, context, self.scale).flatten(1)
