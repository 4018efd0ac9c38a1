"""Paged attention for prompt chunks: many queries per sequence, each sees the cache up to its own position."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.paged_tile import LOG2_E, fold_tile, key_offsets


# What changes from step to step must not mean compiling again: nor must where in a batch its chunks begin.
@triton.jit(do_not_specialize=["table_stride"],
            do_not_specialize_on_alignment=["tables_ptr", "lengths_ptr", "cu_seqlens_q_ptr", "tiles_ptr"])  # fmt: skip
def _prefill_kernel(
    out_ptr: tl.tensor, q_ptr: tl.tensor, k_ptr: tl.tensor, v_ptr: tl.tensor, tables_ptr: tl.tensor, lengths_ptr: tl.tensor,
    cu_seqlens_q_ptr: tl.tensor, tiles_ptr: tl.tensor, scale_log2: tl.tensor,
    out_stride_token: tl.tensor, out_stride_head: tl.tensor, q_stride_token: tl.tensor, q_stride_head: tl.tensor,
    cache_stride_block: tl.tensor, cache_stride_slot: tl.tensor, cache_stride_head: tl.tensor, table_stride: tl.tensor,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr, LISTED: tl.constexpr,
) -> None:  # fmt: skip
    """Program (query tile, sequence, kv head): TOKENS queries times GROUP heads over every key they see.

    LISTED: program (tile, 0, kv head), and `tiles_ptr` says which sequence's queries the tile has.

    As in decode, the query heads of one kv head share a tile, so a key is read once for all of them. This is
    FlashAttention-2's loop (Dao, 2023, https://arxiv.org/abs/2307.08691) with pages in place of rows.
    """
    kv_head = tl.program_id(2)
    if LISTED:
        listed = tl.load(tiles_ptr + 2 * tl.program_id(0))
        seq, in_use = tl.maximum(listed, 0).to(tl.int64), listed >= 0
    else:
        seq, in_use = tl.program_id(1).to(tl.int64), True
    first_row = tl.load(cu_seqlens_q_ptr + seq).to(tl.int64)
    num_queries = (tl.load(cu_seqlens_q_ptr + seq + 1) - first_row).to(tl.int32)
    length = tl.load(lengths_ptr + seq)
    # Launched for the longest chunk of the batch; shorter ones have no such tile. The last tiles have most keys to
    # visit, so they start first.
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * TOKENS
    if LISTED:
        first_query = tl.load(tiles_ptr + 2 * tl.program_id(0) + 1)
    if in_use & (first_query < num_queries):
        row, dim = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
        query, head = first_query + row // GROUP, kv_head * GROUP + row % GROUP
        is_query = (row < TOKENS * GROUP) & (query < num_queries)
        q_places = q_ptr + (first_row + query)[:, None] * q_stride_token + head[:, None] * q_stride_head
        q = tl.load(q_places + dim[None, :], mask=is_query[:, None], other=0.0)

        # A chunk's queries are its sequence's last positions: the causal mask is aligned bottom right.
        position = length - num_queries + query
        seen_by_all = tl.maximum(length - num_queries + first_query + 1, 0) // TILE * TILE
        end = tl.minimum(length - num_queries + first_query + TOKENS, length)

        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        table_ptr = tables_ptr + seq * table_stride
        head_k_ptr, head_v_ptr = k_ptr + kv_head * cache_stride_head, v_ptr + kv_head * cache_stride_head
        tile = tl.arange(0, TILE)
        for start in tl.range(0, seen_by_all, TILE):  # keys that every query of the tile sees: no mask
            offsets = key_offsets(table_ptr, start, end, cache_stride_block, cache_stride_slot, BLOCK_SIZE, TILE)
            highest, total, acc = fold_tile(
                q, highest, total, acc, head_k_ptr, head_v_ptr, offsets, is_query[:, None], is_query, scale_log2,
                HEAD_DIM, False,
            )  # fmt: skip
        for start in tl.range(seen_by_all, end, TILE):  # the diagonal
            offsets = key_offsets(table_ptr, start, end, cache_stride_block, cache_stride_slot, BLOCK_SIZE, TILE)
            visible = (start + tile)[None, :] <= position[:, None]
            highest, total, acc = fold_tile(
                q, highest, total, acc, head_k_ptr, head_v_ptr, offsets, visible, start + tile < end, scale_log2,
                HEAD_DIM, True,
            )  # fmt: skip

        acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # a padding sequence saw nothing and gets zeros
        out_places = out_ptr + (first_row + query)[:, None] * out_stride_token + head[:, None] * out_stride_head
        tl.store(out_places + dim[None, :], acc.to(out_ptr.dtype.element_ty), mask=is_query[:, None])


def paged_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float,
    out: Tensor,
    tiles: Tensor | None = None,
) -> None:
    """Variable-length causal attention over the paged cache; writes out, gives nothing back.

    q, out: `[num_tokens, num_heads, head_dim]`, last dimension contiguous; sequence i owns rows
    `cu_seqlens_q[i]:cu_seqlens_q[i + 1]` (absolute rows: the first need not be 0, rows of no sequence are left as they are).
    k_cache, v_cache: `[num_blocks, block_size, num_kv_heads, head_dim]` with equal strides. block_tables:
    `[num_seqs, max_blocks]`, context_lens: `[num_seqs]`, int32 on the device. No query count above max_seqlen_q.
    tiles: `[num_tiles, 2]` int32, see `Context.tiles`; cut to `queries_per_tile`. The launch then depends on their number
    alone, and rows that no tile has are left alone.
    """
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    wide = q.dtype != torch.float32
    # Tall tiles reuse each key most. One height for all chunks: each would be a kernel of its own to compile.
    rows, tokens = _tile(q.dtype, group)
    grid = (triton.cdiv(max_seqlen_q, tokens), len(context_lens)) if tiles is None else (len(tiles), 1)
    # Eight warps with 128 registers each: two programs fit on a multiprocessor, and one multiplies while the other looks
    # for its maxima. Left to itself the compiler takes more, and a program is alone.
    _prefill_kernel[(*grid, num_kv_heads)](
        out, q, k_cache, v_cache, block_tables, context_lens, cu_seqlens_q, cu_seqlens_q if tiles is None else tiles,
        scale * LOG2_E,
        out.stride(0), out.stride(1), q.stride(0), q.stride(1), *k_cache.stride()[:3], block_tables.stride(0),
        GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, ROWS=rows, TOKENS=tokens, TILE=64 if wide else 32,
        LISTED=tiles is not None,
        num_warps=8, num_stages=3 if wide else 2, maxnreg=128 if wide else None,
    )  # fmt: skip


def queries_per_tile(dtype: torch.dtype, group: int) -> int:
    """How many queries a program takes. group: query heads for each kv head."""
    return _tile(dtype, group)[1]


def _tile(dtype: torch.dtype, group: int) -> tuple[int, int]:
    """(rows, queries) of a tile; a query is a row for each head of its group."""
    rows = max(128 if dtype != torch.float32 else 32, triton.next_power_of_2(group))
    return rows, rows // group
