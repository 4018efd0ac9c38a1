"""Paged attention for decode: one query per sequence, bound by memory bandwidth.

Two ideas make it fast. The query heads that share a key/value head sit in one tile, so each key is read once for all of
them. And the keys of the whole batch, laid end to end, are cut into equal shares, one for each program that the GPU can
run at once, whatever sequences they belong to: long and short contexts, one sequence or five hundred, keep every
multiprocessor busy to the same moment. (The balanced form of flash-decoding, Dao, Haziza, Massa and Sizov, 2023,
https://pytorch.org/blog/flash-decoding/; for matrix products the idea is Stream-K, Osama et al., 2023,
https://arxiv.org/abs/2301.03598.) Of the programs that share a sequence the last to finish joins the pieces.

It is launched when the kernel before it has ended (no programmatic launch): programs that come while the multiprocessors are
still half full are spread unevenly over them. A few sequences take `paged_decode_few`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.device import multiprocessors
from nanovllm.kernels.paged_tile import LOG2_E, fold_tile, key_offsets


class Tuning(NamedTuple):
    """How the kernel is cut and scheduled; changes its speed, never its answer."""

    tile: int  # keys per step of the loop
    num_warps: int
    num_stages: int  # how deep loads run ahead; the table lookup takes two, so 3 keeps one tile of keys in flight, 5 two
    programs: int  # programs that one multiprocessor runs at once

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> "Tuning":
        """What was fastest on an H200 (benchmarks/NOTES.md)."""
        # float32 is there to be exact: without tensor cores it needs many registers, hence small tiles, more warps.
        return cls(32, 8, 3, 1) if dtype == torch.float32 else HALF


HALF = Tuning(32, 2, 5, 3)  # for bfloat16 and float16


@triton.jit
def _join(
    out_ptr: tl.tensor, partial_ptr: tl.tensor, lse_ptr: tl.tensor, kv_head: tl.tensor, first: tl.tensor,
    has_neighbour: tl.tensor, num_pieces: tl.tensor, out_stride_head: tl.tensor,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PIECES: tl.constexpr,
) -> None:  # fmt: skip
    """Make one of the pieces of a cut sequence: each one's average, weighed by its share of the whole softmax sum.

    first: the share that holds the first piece; has_neighbour: whether another sequence stands before it there.
    """
    dim = tl.arange(0, HEAD_DIM)
    for query in tl.static_range(GROUP):
        head = kv_head * GROUP + query
        highest, total = -1e30, 0.0
        acc = tl.zeros([HEAD_DIM], tl.float32)
        for start in range(0, num_pieces, PIECES):
            i = start + tl.arange(0, PIECES)
            index = (first + i) * 2 + ((i == 0) & has_neighbour).to(tl.int32)
            inside = i < num_pieces
            # ".cg": from the cache that all multiprocessors share; others wrote these numbers a moment ago.
            lse = tl.load(lse_ptr + index * NUM_HEADS + head, mask=inside, other=float("-inf"), cache_modifier=".cg")
            part_ptr = partial_ptr + (index * NUM_HEADS + head)[:, None] * HEAD_DIM + dim[None, :]
            part = tl.load(part_ptr, mask=inside[:, None], other=0.0, cache_modifier=".cg")
            new_highest = tl.maximum(highest, tl.max(lse, 0))
            rescale = tl.exp2(highest - new_highest)
            weight = tl.exp2(lse - new_highest)
            total = total * rescale + tl.sum(weight, 0)
            acc = acc * rescale + tl.sum(part * weight[:, None], 0)
            highest = new_highest
        tl.store(out_ptr + head * out_stride_head + dim, (acc / total).to(out_ptr.dtype.element_ty))


# Values that change from step to step are not specialized: a new one must not mean compiling in the middle of serving.
@triton.jit(do_not_specialize=["num_seqs", "table_stride"], do_not_specialize_on_alignment=["tables_ptr", "lengths_ptr"])
def _decode_kernel(
    out_ptr: tl.tensor, partial_ptr: tl.tensor, lse_ptr: tl.tensor, arrived_ptr: tl.tensor, q_ptr: tl.tensor, k_ptr: tl.tensor,
    v_ptr: tl.tensor, tables_ptr: tl.tensor, lengths_ptr: tl.tensor, scale_log2: tl.tensor,
    out_stride_seq: tl.tensor, out_stride_head: tl.tensor, q_stride_seq: tl.tensor, q_stride_head: tl.tensor,
    cache_stride_block: tl.tensor, cache_stride_slot: tl.tensor, cache_stride_head: tl.tensor, table_stride: tl.tensor,
    num_seqs: tl.tensor,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, SEQS: tl.constexpr,
) -> None:  # fmt: skip
    """Program (kv head, share): the GROUP query heads of one kv head over one share of the batch's keys.

    The kv heads of a key lie side by side in the cache, so the programs that start together are those. A sequence that
    lies within the share is finished here; the piece of one that does not goes to one of the share's two partial
    results: 0 for the piece at its beginning, 1 for one that starts later. The program that finishes a
    sequence's last piece joins them all.
    """
    kv_head, share = tl.program_id(0), tl.program_id(1)
    # The batch's tiles are laid end to end; an empty sequence has one, of no keys.
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
    head = kv_head * GROUP + row
    is_head = row < GROUP  # the tensor cores want 16 rows; those beyond the group are computed and dropped
    head_k_ptr, head_v_ptr = k_ptr + kv_head * cache_stride_head, v_ptr + kv_head * cache_stride_head
    while tile < share_end:
        length = tl.load(lengths_ptr + seq)
        seq_end = seq_start + tl.maximum(tl.cdiv(length, TILE), 1)
        stop = tl.minimum(seq_end, share_end)
        start, end = (tile - seq_start) * TILE, tl.minimum((stop - seq_start) * TILE, length)
        wide_seq = seq.to(tl.int64)
        q_places = q_ptr + wide_seq * q_stride_seq + head[:, None] * q_stride_head + dim[None, :]
        q = tl.load(q_places, mask=is_head[:, None], other=0.0)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        table_ptr = tables_ptr + wide_seq * table_stride
        for tile_start in tl.range(start, end, TILE):
            offsets = key_offsets(table_ptr, tile_start, end, cache_stride_block, cache_stride_slot, BLOCK_SIZE, TILE)
            in_range = tile_start + tl.arange(0, TILE) < end
            highest, total, acc = fold_tile(
                q, highest, total, acc, head_k_ptr, head_v_ptr, offsets, in_range[None, :], in_range, scale_log2,
                HEAD_DIM, True,
            )  # fmt: skip
        # No keys (a padding sequence) leaves zeros.
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        seq_out_ptr = out_ptr + wide_seq * out_stride_seq
        if (tile == seq_start) & (stop == seq_end):
            out_places = seq_out_ptr + head[:, None] * out_stride_head + dim[None, :]
            tl.store(out_places, acc.to(out_ptr.dtype.element_ty), mask=is_head[:, None])
        else:
            piece = share * 2 + (tile > share_start).to(tl.int32)
            partial_ptrs = partial_ptr + (piece * NUM_HEADS + head)[:, None] * HEAD_DIM + dim[None, :]
            tl.store(partial_ptrs, acc, mask=is_head[:, None])
            tl.store(lse_ptr + piece * NUM_HEADS + head, highest + tl.log2(total), mask=is_head)
            first = seq_start // share_size
            num_pieces = tl.cdiv(seq_end, share_size) - first
            tl.debug_barrier()  # all of the piece is written before it is counted
            counter_ptr = arrived_ptr + first * tl.num_programs(0) + kv_head
            if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == num_pieces - 1:
                _join(seq_out_ptr, partial_ptr, lse_ptr, kv_head, first, seq_start > first * share_size, num_pieces,
                      out_stride_head, NUM_HEADS, GROUP, HEAD_DIM, 16)  # fmt: skip
                tl.store(counter_ptr, 0)  # for the next launch
        tile, seq, seq_start = stop, seq + 1, seq_end


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
    arrived: Tensor | None = None,
    tuning: Tuning | None = None,
    num_shares: int | None = None,
) -> None:
    """Each sequence's one query over its whole context; writes out, gives nothing back.

    q, out: `[num_seqs, num_heads, head_dim]`, last dimension contiguous. k_cache, v_cache: `[num_blocks, block_size,
    num_kv_heads, head_dim]` with equal strides. block_tables: `[num_seqs, max_blocks]` int32. context_lens:
    `[num_seqs]` int32 on the device; 0 gives a row of zeros. arrived: `[at least num_shares * num_kv_heads]` int32, zeros,
    which it leaves as zeros; it saves making new ones. The launch depends on the device and on num_seqs alone, so a CUDA
    graph captured once serves any lengths.
    """
    num_seqs, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    tuning = tuning or Tuning.for_dtype(q.dtype)
    num_shares = num_shares or max(1, tuning.programs * multiprocessors(q.device) // num_kv_heads)
    if arrived is None:
        arrived = torch.zeros(num_shares * num_kv_heads, dtype=torch.int32, device=q.device)
    seqs = 16 if num_seqs <= 16 else 128 if num_seqs <= 128 else max(512, triton.next_power_of_2(num_seqs))
    partial = torch.empty(num_shares, 2, num_heads, head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(num_shares, 2, num_heads, dtype=torch.float32, device=q.device)
    _decode_kernel[(num_kv_heads, num_shares)](
        out, partial, lse, arrived, q, k_cache, v_cache, block_tables, context_lens, scale * LOG2_E,
        out.stride(0), out.stride(1), q.stride(0), q.stride(1), *k_cache.stride()[:3], block_tables.stride(0), num_seqs,
        NUM_HEADS=num_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size,
        ROWS=max(16, triton.next_power_of_2(group)), TILE=tuning.tile, SEQS=seqs,
        num_warps=tuning.num_warps, num_stages=tuning.num_stages,
    )  # fmt: skip
