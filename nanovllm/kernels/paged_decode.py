"""Paged attention for decode: one query a sequence, all of it memory traffic.

Two ideas make it fast. The query heads that share a key/value head sit in one tile, so each key is read once for
all of them. And a long context is cut into splits that run side by side (flash-decoding: Dao, Haziza, Massa and
Sizov, 2023, https://pytorch.org/blog/flash-decoding/), so that few sequences still fill the GPU; a second kernel
merges what the splits found.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.paged_tile import LOG2_E, fold_tile, key_offsets

MAX_SPLITS = 64


class Tuning(NamedTuple):
    """How a kernel is cut and scheduled; changes its speed, never its answer."""

    tile: int  # keys per step of the loop
    num_warps: int
    num_stages: int  # how deep loads run ahead; the table lookup takes two, so 5 keeps two tiles of keys in flight

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> "Tuning":
        # float32 is there to be exact: without tensor cores it needs many registers, hence small tiles, more warps.
        return cls(32, 8, 3) if dtype == torch.float32 else cls(64, 4, 5)


# Values that change from step to step are not specialized: a new one must not mean compiling in the middle of serving.
@triton.jit(do_not_specialize=["num_splits", "table_stride"])
def _decode_kernel(
    out_ptr, lse_ptr, q_ptr, k_ptr, v_ptr, tables_ptr, lengths_ptr, scale_log2,
    out_stride_seq, out_stride_split, out_stride_head, q_stride_seq, q_stride_head,
    cache_stride_block, cache_stride_slot, cache_stride_head, table_stride, num_splits,
    MERGED: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (kv head, split, sequence): the GROUP query heads of one kv head over one split of the keys.

    The kv heads of a key lie side by side in the cache, so the programs that start together are those. Writes the
    split's own softmax average, and the log2 of its sum when there are other splits to merge it with.
    """
    kv_head, split, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + seq)
    # Splits are whole tiles and share the sequence's own length evenly: the launch needs no length from the device.
    tiles = tl.cdiv(length, TILE)
    tiles_per_split = tl.cdiv(tiles, num_splits)
    start = split * tiles_per_split * TILE
    end = tl.minimum(start + tiles_per_split * TILE, length)

    row, dim = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    head = kv_head * GROUP + row
    is_head = row < GROUP  # the tensor cores want 16 rows; those beyond the group are computed and dropped
    q_places = q_ptr + seq * q_stride_seq + head[:, None] * q_stride_head + dim[None, :]
    q = tl.load(q_places, mask=is_head[:, None], other=0.0)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    table_ptr = tables_ptr + seq * table_stride
    head_k_ptr, head_v_ptr = k_ptr + kv_head * cache_stride_head, v_ptr + kv_head * cache_stride_head
    for tile_start in tl.range(start, end, TILE):
        offsets = key_offsets(table_ptr, tile_start, end, cache_stride_block, cache_stride_slot, BLOCK_SIZE, TILE)
        in_range = tile_start + tl.arange(0, TILE) < end
        highest, total, acc = fold_tile(
            q, highest, total, acc, head_k_ptr, head_v_ptr, offsets, in_range[None, :], in_range, scale_log2,
            HEAD_DIM, True,
        )  # fmt: skip

    # A split without keys (a short context, a padding sequence) leaves zeros and a log of -inf.
    found = total > 0
    acc = acc / tl.where(found, total, 1.0)[:, None]
    out_places = out_ptr + seq * out_stride_seq + split * out_stride_split + head[:, None] * out_stride_head
    tl.store(out_places + dim[None, :], acc.to(out_ptr.dtype.element_ty), mask=is_head[:, None])
    if MERGED:
        lse = tl.where(found, highest + tl.log2(tl.where(found, total, 1.0)), float("-inf"))
        tl.store(lse_ptr + (seq * num_splits + split) * NUM_KV_HEADS * GROUP + head, lse, mask=is_head)


@triton.jit(do_not_specialize=["num_splits"])
def _merge_kernel(
    out_ptr, partial_ptr, lse_ptr, out_stride_seq, out_stride_head, num_splits,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (sequence, head): weigh each split's average by its share of the whole softmax sum."""
    seq, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, dim = tl.arange(0, MAX_SPLITS), tl.arange(0, HEAD_DIM)
    row = (seq * num_splits + split) * NUM_HEADS + head
    lse = tl.load(lse_ptr + row, mask=split < num_splits, other=float("-inf"))
    used = lse > float("-inf")
    highest = tl.max(tl.where(used, lse, -1e30), 0)
    weight = tl.where(used, tl.exp2(lse - highest), 0.0)
    partial = tl.load(partial_ptr + row[:, None] * HEAD_DIM + dim[None, :], mask=used[:, None], other=0.0)
    total = tl.sum(weight, 0)
    out = tl.sum(partial * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    out_places = out_ptr + seq * out_stride_seq + head * out_stride_head + dim
    tl.store(out_places, out.to(out_ptr.dtype.element_ty))


@lru_cache
def programs_wanted(device: torch.device) -> int:
    """How many programs keep `device` busy: a few for each of its multiprocessors."""
    if device.type != "cuda":
        return 16  # the interpreter: enough that short tests take the split path
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def choose_splits(num_seqs: int, num_kv_heads: int, max_seqlen_k: int, tile: int, programs: int) -> int:
    """Splits of the keys so that about `programs` programs run, never more than there are tiles to share out."""
    wanted = programs // max(1, num_seqs * num_kv_heads)
    return max(1, min(wanted, triton.cdiv(max_seqlen_k, tile), MAX_SPLITS))


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    max_seqlen_k: int,
    scale: float,
    out: Tensor,
    num_splits: int | None = None,
    tuning: Tuning | None = None,
) -> None:
    """Each sequence's one query over its whole context; writes out, gives nothing back.

    q, out: `[num_seqs, num_heads, head_dim]`, last dimension contiguous. k_cache, v_cache: `[num_blocks, block_size,
    num_kv_heads, head_dim]` with equal strides. block_tables: `[num_seqs, max_blocks]` int32. context_lens:
    `[num_seqs]` int32 on the device; 0 gives a row of zeros. max_seqlen_k only bounds the number of splits: too large
    is never wrong, and a CUDA graph captures the largest. float32 partial results take num_splits times the output.
    """
    num_seqs, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    tile, num_warps, num_stages = tuning or Tuning.for_dtype(q.dtype)
    if num_splits is None:
        num_splits = choose_splits(num_seqs, num_kv_heads, max_seqlen_k, tile, programs_wanted(q.device))
    target, lse, target_strides = out, out, (out.stride(0), 0, out.stride(1))
    if num_splits > 1:
        target = torch.empty(num_seqs, num_splits, num_heads, head_dim, dtype=torch.float32, device=q.device)
        lse = torch.empty(num_seqs, num_splits, num_heads, dtype=torch.float32, device=q.device)
        target_strides = target.stride()[:3]
    _decode_kernel[(num_kv_heads, num_splits, num_seqs)](
        target, lse, q, k_cache, v_cache, block_tables, context_lens, scale * LOG2_E,
        *target_strides, q.stride(0), q.stride(1), *k_cache.stride()[:3], block_tables.stride(0), num_splits,
        MERGED=num_splits > 1, NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size,
        ROWS=max(16, triton.next_power_of_2(group)), TILE=tile, num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    if num_splits > 1:
        _merge_kernel[(num_seqs, num_heads)](
            out, target, lse, out.stride(0), out.stride(1), num_splits,
            NUM_HEADS=num_heads, HEAD_DIM=head_dim, MAX_SPLITS=MAX_SPLITS, num_warps=4,
        )  # fmt: skip
