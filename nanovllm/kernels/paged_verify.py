"""Paged attention for checking drafts: the last few queries of each sequence, which share one read of its keys.

`paged_decode` with more rows to a tile. A decode step waits for keys and values to arrive from memory, and a tile of the
tensor cores has 16 rows, of which one query fills as many as there are heads to a key/value head. So the queries of a
sequence's drafts go into the rows that were empty: 1 + k queries read as much as one does. (The same is done by
FlashInfer's and vLLM's kernels for "append" and speculative decoding; Ye et al., 2025, https://arxiv.org/abs/2501.01005.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import has_pdl, multiprocessors
from nanovllm.kernels.paged_decode import Tuning, _join
from nanovllm.kernels.paged_tile import LOG2_E, fold_tile, key_offsets

PDL_UP_TO = 4  # sequences: more fill the multiprocessors, and only if the kernel before is gone do they fill evenly


def tuning_for(dtype: torch.dtype, rows: int) -> Tuning:
    """rows: of a tile, one for each query and head. Taller tiles need more warps to hold their sums."""
    if dtype == torch.float32:
        return Tuning(32, 8, 2, 1)
    return Tuning(32, 2, 3, 4) if rows <= 16 else Tuning(32, 4, 3, 2) if rows <= 64 else Tuning(32, 8, 3, 1)


# Values that change from step to step are not specialized: a new one must not mean compiling in the middle of serving.
@triton.jit(do_not_specialize=["num_seqs", "table_stride"],
            do_not_specialize_on_alignment=["tables_ptr", "lengths_ptr", "query_lens_ptr"])  # fmt: skip
def _verify_kernel(
    out_ptr: tl.tensor, partial_ptr: tl.tensor, lse_ptr: tl.tensor, arrived_ptr: tl.tensor, q_ptr: tl.tensor, k_ptr: tl.tensor,
    v_ptr: tl.tensor, tables_ptr: tl.tensor, lengths_ptr: tl.tensor, query_lens_ptr: tl.tensor, scale_log2: tl.tensor,
    out_stride_token: tl.tensor, out_stride_head: tl.tensor, q_stride_token: tl.tensor, q_stride_head: tl.tensor,
    cache_stride_block: tl.tensor, cache_stride_slot: tl.tensor, cache_stride_head: tl.tensor, table_stride: tl.tensor,
    num_seqs: tl.tensor,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SEQS: tl.constexpr, PDL: tl.constexpr,
) -> None:  # fmt: skip
    """Program (kv head, share): QUERIES queries times GROUP heads of one kv head over one share of the batch's keys.

    Shares, pieces and their join are those of `_decode_kernel`; a partial result has a row for each query and head.
    """
    kv_head, share = tl.program_id(0), tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    each = tl.arange(0, SEQS)
    lengths = tl.load(lengths_ptr + each, mask=each < num_seqs, other=0)
    tiles = tl.where(each < num_seqs, tl.maximum(tl.cdiv(lengths, TILE), 1), 0)
    ends, total_tiles = tl.cumsum(tiles, 0), tl.sum(tiles, 0)
    share_size = tl.cdiv(total_tiles, tl.num_programs(1))
    share_start = share * share_size
    share_end = tl.minimum(share_start + share_size, total_tiles)
    tile = share_start
    seq = tl.sum((ends <= tile).to(tl.int32), 0)
    seq_start = tl.max(tl.where(ends <= tile, ends, 0), 0)

    row, dim = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    query, head = row // GROUP, kv_head * GROUP + row % GROUP
    is_row = row < QUERIES * GROUP
    piece_row = query * NUM_HEADS + head
    head_k_ptr, head_v_ptr = k_ptr + kv_head * cache_stride_head, v_ptr + kv_head * cache_stride_head
    if PDL:
        tl.extra.cuda.gdc_wait()
    while tile < share_end:
        length = tl.load(lengths_ptr + seq)
        num_queries = tl.minimum(tl.load(query_lens_ptr + seq), length)  # none in a padding sequence
        seq_end = seq_start + tl.maximum(tl.cdiv(length, TILE), 1)
        stop = tl.minimum(seq_end, share_end)
        start, end = (tile - seq_start) * TILE, tl.minimum((stop - seq_start) * TILE, length)
        wide_seq = seq.to(tl.int64)
        first_row = wide_seq * QUERIES
        is_query = is_row & (query < num_queries)
        # The queries are the sequence's last positions, and none sees those behind it.
        position = length - num_queries + query
        q_places = q_ptr + (first_row + query)[:, None] * q_stride_token + head[:, None] * q_stride_head + dim[None, :]
        q = tl.load(q_places, mask=is_query[:, None], other=0.0)
        # Lowest but finite: a piece may hold only keys that the first queries do not see, and -inf less -inf is no number.
        highest = tl.full([ROWS], -1e30, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        table_ptr = tables_ptr + wide_seq * table_stride
        for tile_start in tl.range(start, end, TILE):
            offsets = key_offsets(table_ptr, tile_start, end, cache_stride_block, cache_stride_slot, BLOCK_SIZE, TILE)
            key = tile_start + tl.arange(0, TILE)
            visible = (key[None, :] <= position[:, None]) & is_query[:, None]
            highest, total, acc = fold_tile(
                q, highest, total, acc, head_k_ptr, head_v_ptr, offsets, visible, key < end, scale_log2, HEAD_DIM, True,
            )  # fmt: skip
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        seq_out_ptr = out_ptr + first_row * out_stride_token
        out_places = seq_out_ptr + query[:, None] * out_stride_token + head[:, None] * out_stride_head + dim[None, :]
        if (tile == seq_start) & (stop == seq_end):
            tl.store(out_places, acc.to(out_ptr.dtype.element_ty), mask=is_row[:, None])
        else:
            if tile == seq_start:  # rows of no query are nobody's to join
                nothing = tl.zeros([ROWS, HEAD_DIM], out_ptr.dtype.element_ty)
                tl.store(out_places, nothing, mask=(is_row & (query >= num_queries))[:, None])
            piece = share * 2 + (tile > share_start).to(tl.int32)
            index = piece * (QUERIES * NUM_HEADS) + piece_row
            tl.store(partial_ptr + index[:, None] * HEAD_DIM + dim[None, :], acc, mask=is_row[:, None])
            tl.store(lse_ptr + index, highest + tl.log2(total), mask=is_row)
            first = seq_start // share_size
            num_pieces = tl.cdiv(seq_end, share_size) - first
            tl.debug_barrier()  # all of the piece is written before it is counted
            counter_ptr = arrived_ptr + first * tl.num_programs(0) + kv_head
            if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == num_pieces - 1:
                for i in range(tl.minimum(num_queries, QUERIES)):
                    _join(seq_out_ptr + i * out_stride_token, partial_ptr + i * NUM_HEADS * HEAD_DIM, lse_ptr + i * NUM_HEADS,
                          kv_head, first, seq_start > first * share_size, num_pieces, out_stride_head,
                          QUERIES * NUM_HEADS, GROUP, HEAD_DIM, 16)  # fmt: skip
                tl.store(counter_ptr, 0)  # for the next launch
        tile, seq, seq_start = stop, seq + 1, seq_end


def paged_verify(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    query_lens: Tensor,
    scale: float,
    out: Tensor,
    arrived: Tensor | None = None,
    num_shares: int | None = None,
) -> None:
    """What `layers.verify_attention.attend_queries` says; writes out, gives nothing back.

    q, out: `[num_seqs * queries, num_heads, head_dim]`, last dimension contiguous, the same number of rows for each sequence.
    query_lens: `[num_seqs]` int32 on the device, how many of its rows are queries: a plain decode has 1. context_lens:
    `[num_seqs]` int32, keys that the last of them sees; 0 gives rows of zeros. k_cache, v_cache, block_tables, arrived: as
    `paged_decode` has them. The launch depends on the device and the shapes alone, so a CUDA graph can hold it.
    """
    num_seqs = len(context_lens)
    queries, (num_heads, head_dim) = len(q) // num_seqs, q.shape[1:]
    block_size, num_kv_heads = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    rows = max(16, triton.next_power_of_2(queries * group))
    pdl = has_pdl(q.device) and num_seqs <= PDL_UP_TO
    tuning = tuning_for(q.dtype, rows)
    num_shares = num_shares or max(1, tuning.programs * multiprocessors(q.device) // num_kv_heads)
    if arrived is None:
        arrived = torch.zeros(num_shares * num_kv_heads, dtype=torch.int32, device=q.device)
    seqs = 16 if num_seqs <= 16 else 128 if num_seqs <= 128 else max(512, triton.next_power_of_2(num_seqs))
    partial = torch.empty(num_shares, 2, queries * num_heads, head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(num_shares, 2, queries * num_heads, dtype=torch.float32, device=q.device)
    _verify_kernel[(num_kv_heads, num_shares)](
        out, partial, lse, arrived, q, k_cache, v_cache, block_tables, context_lens, query_lens, scale * LOG2_E,
        out.stride(0), out.stride(1), q.stride(0), q.stride(1), *k_cache.stride()[:3], block_tables.stride(0), num_seqs,
        NUM_HEADS=num_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, QUERIES=queries, ROWS=rows,
        TILE=tuning.tile, SEQS=seqs, PDL=pdl, launch_pdl=pdl, num_warps=tuning.num_warps, num_stages=tuning.num_stages,
    )  # fmt: skip
