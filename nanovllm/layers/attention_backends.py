"""Attention over a paged cache, computed three ways; `attention.py` says what each must do and picks one.

`torch` says it plainly and runs anywhere; `triton` is ours and fast; `flash_attn` is the package.
"""

import importlib
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovllm.layers.verify_attention import attend_queries
from nanovllm.utils.context import Context


def import_error(module: str) -> str | None:
    """Why `module` cannot be imported, or None when it can (it may be built for another torch)."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises whatever its loader raises
        return f"{type(error).__name__}: {error}"
    return None


class TorchBackend:
    """The reference, in plain PyTorch, and what a CPU runs in production.

    Goes through the batch one sequence at a time and copies only that sequence's blocks. On a CPU this beats padding
    the batch to its longest sequence (2.5 times on one core, 64 sequences of 200 to 400 keys): what one sequence needs,
    a few hundred kB, is still in the core's own cache when it is used, and nothing is computed for padding. The copy
    even pays for blocks that lie in a row and could be looked at in place: it streams from memory, which the strided
    reads of attention do not. Reads lengths on the host, so it synchronises with a GPU and cannot be captured in a
    CUDA graph.
    """

    name = "torch"

    def store(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
        stored = slot_mapping >= 0
        if not bool(stored.all()):
            k, v, slot_mapping = k[stored], v[stored], slot_mapping[stored]
        k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, slot_mapping, k)
        v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, slot_mapping, v)

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, context: Context, scale: float) -> Tensor:
        if context.query_lens is not None:
            return attend_queries(q, k_cache, v_cache, context.block_tables, context.context_lens, context.query_lens, scale)
        block_size, num_kv_heads = k_cache.shape[1:3]
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        rows = pairwise(context.cu_seqlens_q.tolist())
        lengths = context.context_lens.tolist()
        for i, ((start, end), length) in enumerate(zip(rows, lengths, strict=True)):
            num_queries = end - start
            if num_queries == 0 or length == 0:
                continue
            blocks = context.block_tables[i, : -(-length // block_size)]
            k, v = k_cache.index_select(0, blocks), v_cache.index_select(0, blocks)
            # [num_blocks, block_size, heads, dim] -> [1, heads, length, dim]
            k = k.flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0)
            v = v.flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0)
            if num_queries == 1:
                # The query heads that share a key/value head become rows of one small matrix: a key is then read once
                # for the whole group. One query sees every key: no mask.
                grouped = q[start].view(1, num_kv_heads, -1, q.shape[2])
                seen = F.scaled_dot_product_attention(grouped, k, v, scale=scale)
                out[start] = seen.reshape(out[start].shape)
                continue
            mask = None
            if length > num_queries:  # a prefix is cached: align the causal mask bottom right
                mask = torch.ones(num_queries, length, dtype=torch.bool, device=q.device)
                mask = mask.tril(length - num_queries)
            seen = F.scaled_dot_product_attention(
                q[start:end].transpose(0, 1).unsqueeze(0), k, v,
                attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True,
            )  # fmt: skip
            out[start:end] = seen[0].transpose(0, 1)
        return out


class TritonBackend:
    """Our own kernels (`nanovllm.kernels`): any block size, float32, float16 or bfloat16.

    Never waits for the GPU: launch sizes come from tensor shapes and the context's plain integers, so a decode step can
    be captured in a CUDA graph. Under TRITON_INTERPRET=1 the same kernels run on a CPU, slowly; that is how CI checks
    them (in float32 and float16: the interpreter does not multiply bfloat16 matrices correctly).
    """

    name = "triton"

    def __init__(self) -> None:
        from nanovllm.kernels import kv_store, paged_decode, paged_decode_few, paged_prefill, paged_verify

        self.store = kv_store.store_kv
        self._decode, self._verify = paged_decode.paged_decode, paged_verify.paged_verify
        self._decode_few, self._few = paged_decode_few.paged_decode_few, paged_decode_few.FEW_SEQUENCES
        self._prefill, self.queries_per_tile = paged_prefill.paged_prefill, paged_prefill.queries_per_tile
        self._arrived: Tensor | None = None  # counters at zero, between any two launches

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, context: Context, scale: float) -> Tensor:
        # With a list of tiles some rows are nobody's: zeros, lest they be no numbers.
        out = (torch.empty if context.tiles is None else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
        n = context.num_decodes
        if n > 0:
            if self._arrived is None:
                self._arrived = torch.zeros(4096, dtype=torch.int32, device=q.device)
            tables, lengths = context.block_tables[:n], context.context_lens[:n]
            if context.query_lens is not None:
                self._verify(q, k_cache, v_cache, tables, lengths, context.query_lens, scale, out, self._arrived)
                return out
            decode = self._decode_few if n <= self._few else self._decode
            decode(q[:n], k_cache, v_cache, tables, lengths, scale, out[:n], self._arrived)
        if q.shape[0] > n or context.tiles is not None:
            # Behind the decodes, which leave zeros in the rows of sequences that are empty.
            tables, lengths = context.block_tables[n:], context.context_lens[n:]
            starts = context.cu_seqlens_q[n:]
            self._prefill(q, k_cache, v_cache, tables, lengths, starts, context.max_seqlen_q, scale, out, context.tiles)
        return out


class FlashAttnBackend:
    """The flash-attn package, version 2 (Dao, 2023, https://arxiv.org/abs/2307.08691).

    Pages must be multiples of 256 tokens, numbers float16 or bfloat16. Stores with our Triton kernel, since the package
    only appends to a cache as part of a decode step.
    """

    name = "flash_attn"

    def __init__(self) -> None:
        import flash_attn

        self._decode = flash_attn.flash_attn_with_kvcache
        self._varlen = flash_attn.flash_attn_varlen_func
        if import_error("triton") is None:
            from nanovllm.kernels.kv_store import store_kv

            self.store = store_kv
        else:
            self.store = TorchBackend().store

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, context: Context, scale: float) -> Tensor:
        n, num_tokens = context.num_decodes, q.shape[0]
        lengths, tables = context.context_lens, context.block_tables
        parts = []
        if n > 0:
            decoded = self._decode(
                q[:n].unsqueeze(1), k_cache, v_cache, cache_seqlens=lengths[:n], block_table=tables[:n],
                softmax_scale=scale, causal=True,
            )  # fmt: skip
            parts.append(decoded.squeeze(1))
        if num_tokens > n:
            # With pages the package takes only the lengths from this, never positions.
            cu_seqlens_k = F.pad(lengths[n:].cumsum(0, dtype=torch.int32), (1, 0))
            chunks = self._varlen(
                q[n:], k_cache, v_cache, context.cu_seqlens_q[n:] - n, cu_seqlens_k, context.max_seqlen_q,
                context.max_seqlen_k, softmax_scale=scale, causal=True, block_table=tables[n:],
            )  # fmt: skip
            parts.append(chunks)
        return parts[0] if len(parts) == 1 else torch.cat(parts)
