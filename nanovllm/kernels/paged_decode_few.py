"""Paged attention for the decodes of a few sequences, where time passes in waiting and not in reading.

One sequence of 400 keys is a megabyte, a quarter of a microsecond of memory's time; a launch that reads it takes ten times
that, one step after another: lengths, block table, queries and keys, the pieces of other programs. So this kernel makes the
chain short, where `paged_decode` makes the shares equal. The keys of a sequence are cut into a few pieces (flash-decoding,
Dao, Haziza, Massa and Sizov, 2023, https://pytorch.org/blog/flash-decoding/), each one large tile where that suffices, so
that all pieces are joined in a single read. And with programmatic dependent launch the first tile is asked for before the
kernel in front has ended: all keys but the newest were there before the step began.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import has_pdl, multiprocessors
from nanovllm.kernels.paged_tile import LOG2_E, fold_keys, fold_tile, key_offsets

TILE_BYTES, NUM_WARPS, NUM_STAGES = 16384, 4, 3  # of the keys of one tile, and as many of its values
PROGRAMS, MOST_PIECES = 256, 64  # of all sequences and kv heads, at most two a multiprocessor; of one sequence
FEW_SEQUENCES = 4  # from more on the equal shares of `paged_decode` are faster
JOINED = 16  # pieces that are read at once when they are joined


@triton.jit
def _join(
    out_ptr: tl.tensor, partial_ptr: tl.tensor, lse_ptr: tl.tensor, num_pieces: tl.tensor, out_stride_head: tl.tensor,
    stride_piece: tl.tensor, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, JOINED: tl.constexpr,
) -> None:  # fmt: skip
    """Each piece's average, weighed by its share of the whole softmax sum. stride_piece: heads from one piece to the next."""
    head, dim = tl.arange(0, HEADS), tl.arange(0, HEAD_DIM)
    highest = tl.full([HEADS], -1e30, tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, HEAD_DIM], tl.float32)
    for first in range(0, num_pieces, JOINED):
        piece = first + tl.arange(0, JOINED)
        inside = (piece < num_pieces)[:, None] & (head < GROUP)[None, :]
        index = piece[:, None] * stride_piece + head[None, :]
        # ".cg": from the cache that all multiprocessors share; others wrote these numbers a moment ago.
        part = tl.load(partial_ptr + index[:, :, None] * HEAD_DIM + dim[None, None, :], mask=inside[:, :, None], other=0.0,
                       cache_modifier=".cg")
        lse = tl.load(lse_ptr + index, mask=inside, other=float("-inf"), cache_modifier=".cg")
        new_highest = tl.maximum(highest, tl.max(lse, 0))
        rescale = tl.exp2(highest - new_highest)
        weight = tl.exp2(lse - new_highest[None, :])
        total = total * rescale + tl.sum(weight, 0)
        acc = acc * rescale[:, None] + tl.sum(part * weight[:, :, None], 0)
        highest = new_highest
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    places = out_ptr + head[:, None] * out_stride_head + dim[None, :]
    tl.store(places, out.to(out_ptr.dtype.element_ty), mask=(head < GROUP)[:, None])


# Values that change from step to step are not specialized: a new one must not mean compiling in the middle of serving.
@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["tables_ptr", "lengths_ptr"])
def _decode_few_kernel(
    out_ptr: tl.tensor, partial_ptr: tl.tensor, lse_ptr: tl.tensor, arrived_ptr: tl.tensor, q_ptr: tl.tensor, k_ptr: tl.tensor,
    v_ptr: tl.tensor, tables_ptr: tl.tensor, lengths_ptr: tl.tensor, scale_log2: tl.tensor,
    out_stride_seq: tl.tensor, out_stride_head: tl.tensor, q_stride_seq: tl.tensor, q_stride_head: tl.tensor,
    cache_stride_block: tl.tensor, cache_stride_slot: tl.tensor, cache_stride_head: tl.tensor, table_stride: tl.tensor,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, JOINED: tl.constexpr, PDL: tl.constexpr,
) -> None:  # fmt: skip
    """Program (kv head, piece, sequence); pieces that a short sequence has no keys for end at once.

    HEADS, ROWS: GROUP rounded up, to a power of two and to what the tensor cores take.
    """
    kv_head, piece, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # Lengths and tables are there since before the step's first layer: no need yet to wait for the kernel before this.
    length = tl.load(lengths_ptr + seq)
    tiles = tl.maximum(tl.cdiv(length, TILE), 1)
    tiles_each = tl.cdiv(tiles, tl.num_programs(1))
    num_pieces = tl.cdiv(tiles, tiles_each)
    start = piece * tiles_each * TILE
    end = tl.minimum(start + tiles_each * TILE, length)
    row, key, dim = tl.arange(0, ROWS), tl.arange(0, TILE), tl.arange(0, HEAD_DIM)
    head = kv_head * GROUP + row
    is_head = row < GROUP  # the tensor cores want 16 rows; those beyond the group are computed and dropped
    if piece < num_pieces:
        table_ptr = tables_ptr + seq.to(tl.int64) * table_stride
        head_k_ptr, head_v_ptr = k_ptr + kv_head * cache_stride_head, v_ptr + kv_head * cache_stride_head
        offsets = key_offsets(table_ptr, start, end, cache_stride_block, cache_stride_slot, BLOCK_SIZE, TILE)
        places = offsets[:, None] + dim[None, :]
        in_range, newest = start + key < end, start + key == length - 1
        # A slot that was never written may hold NaN, and 0 * NaN is NaN: values that are masked must also be read as 0.
        k = tl.load(head_k_ptr + places, mask=(in_range & ~newest)[:, None], other=0.0)
        v = tl.load(head_v_ptr + places, mask=(in_range & ~newest)[:, None], other=0.0)
        if PDL:
            tl.extra.cuda.gdc_wait()
        newest_k = tl.load(head_k_ptr + places, mask=newest[:, None], other=0.0)
        newest_v = tl.load(head_v_ptr + places, mask=newest[:, None], other=0.0)
        q = tl.load(q_ptr + seq * q_stride_seq + head[:, None] * q_stride_head + dim[None, :], mask=is_head[:, None], other=0.0)
        k, v = tl.where(newest[:, None], newest_k, k), tl.where(newest[:, None], newest_v, v)
        highest = tl.full([ROWS], -1e30, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        highest, total, acc = fold_keys(q, highest, total, acc, k, v, in_range[None, :], scale_log2, True)
        for tile_start in tl.range(start + TILE, end, TILE):
            offsets = key_offsets(table_ptr, tile_start, end, cache_stride_block, cache_stride_slot, BLOCK_SIZE, TILE)
            in_range = tile_start + key < end
            highest, total, acc = fold_tile(
                q, highest, total, acc, head_k_ptr, head_v_ptr, offsets, in_range[None, :], in_range, scale_log2,
                HEAD_DIM, True,
            )  # fmt: skip
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # no keys (a padding sequence) leaves zeros
        seq_out_ptr = out_ptr + seq * out_stride_seq
        if num_pieces == 1:
            tl.store(seq_out_ptr + head[:, None] * out_stride_head + dim[None, :], acc.to(out_ptr.dtype.element_ty),
                     mask=is_head[:, None])
        else:
            first_head = seq * tl.num_programs(1) * NUM_HEADS + kv_head * GROUP  # of the sequence's first piece
            index = first_head + piece * NUM_HEADS + row
            tl.store(partial_ptr + index[:, None] * HEAD_DIM + dim[None, :], acc, mask=is_head[:, None])
            tl.store(lse_ptr + index, highest + tl.log2(total), mask=is_head)
            tl.debug_barrier()  # all of the piece is written before it is counted
            counter_ptr = arrived_ptr + seq * tl.num_programs(0) + kv_head
            if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == num_pieces - 1:
                _join(seq_out_ptr + kv_head * GROUP * out_stride_head, partial_ptr + first_head * HEAD_DIM,
                      lse_ptr + first_head, num_pieces, out_stride_head, NUM_HEADS, GROUP, HEADS, HEAD_DIM, JOINED)  # fmt: skip
                tl.store(counter_ptr, 0)  # for the next launch


def paged_decode_few(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float, out: Tensor,
    arrived: Tensor | None = None, max_pieces: int | None = None,
) -> None:  # fmt: skip
    """As `paged_decode`, whose arguments it takes; arrived: `[at least num_seqs * num_kv_heads]` int32, zeros."""
    num_seqs, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    group, pdl = num_heads // num_kv_heads, has_pdl(q.device)
    tile = max(16, TILE_BYTES // (head_dim * q.element_size()))
    programs = min(PROGRAMS, 2 * multiprocessors(q.device))
    pieces = max_pieces or max(1, min(MOST_PIECES, programs // (num_kv_heads * num_seqs)))
    if arrived is None:
        arrived = torch.zeros(num_seqs * num_kv_heads, dtype=torch.int32, device=q.device)
    partial = torch.empty(num_seqs, pieces, num_heads, head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(num_seqs, pieces, num_heads, dtype=torch.float32, device=q.device)
    _decode_few_kernel[(num_kv_heads, pieces, num_seqs)](
        out, partial, lse, arrived, q, k_cache, v_cache, block_tables, context_lens, scale * LOG2_E,
        out.stride(0), out.stride(1), q.stride(0), q.stride(1), *k_cache.stride()[:3], block_tables.stride(0),
        NUM_HEADS=num_heads, GROUP=group, HEADS=triton.next_power_of_2(group), HEAD_DIM=head_dim, BLOCK_SIZE=block_size,
        ROWS=max(16, triton.next_power_of_2(group)), TILE=tile, JOINED=JOINED, PDL=pdl, launch_pdl=pdl,
        num_warps=NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
