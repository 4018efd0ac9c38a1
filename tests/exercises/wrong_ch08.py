"""Plausible wrong answers to chapter 08: name of the check -> answers that must fail it, each with a hint of its own."""

import torch
import triton
import triton.language as tl


def mean_of_the_shares(parts):
    return torch.stack([acc / total[:, None] for _, total, acc in parts]).mean(0)


def adds_sums_as_they_are(parts):
    return sum(acc for *_, acc in parts) / sum(total for _, total, _ in parts)[:, None]


def overflows(parts):
    total = sum(highest.exp() * total for highest, total, _ in parts)
    return sum(highest.exp()[:, None] * acc for highest, _, acc in parts) / total[:, None]


def _attend(q, k, v, scale):
    return torch.einsum("hl,lhd->hd", (torch.einsum("hd,lhd->hl", q, k) * scale).softmax(-1), v)


def gathers_everything(q, k_cache, v_cache, block_table, length, scale):
    k, v = (cache[block_table.long()].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
    return _attend(q, *(t.repeat_interleave(len(q) // k.shape[1], 1) for t in (k, v)), scale)


def reads_whole_blocks(q, k_cache, v_cache, block_table, length, scale):
    blocks = block_table[:-(-length // k_cache.shape[1])].long()
    k, v = (cache[blocks].flatten(0, 1) for cache in (k_cache, v_cache))
    return _attend(q, *(t.repeat_interleave(len(q) // k.shape[1], 1) for t in (k, v)), scale)


def gives_heads_their_keys_in_turn(q, k_cache, v_cache, block_table, length, scale):
    k, v = (cache[block_table.long()].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
    return _attend(q, *(t.repeat(1, len(q) // k.shape[1], 1) for t in (k, v)), scale)


@triton.jit
def no_table(out_ptr, q_ptr, k_ptr, v_ptr, tables_ptr, lengths_ptr, table_stride, scale,
             NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    seq, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    dim, slot = tl.arange(0, DIM), tl.arange(0, BLOCK_SIZE)
    row = (seq * NUM_HEADS + head) * DIM + dim
    length = tl.load(lengths_ptr + seq)
    q = tl.load(q_ptr + row)
    block = tl.load(tables_ptr + seq * table_stride)
    total, acc = 0.0, tl.zeros([DIM], tl.float32)
    for start in range(0, length, BLOCK_SIZE):  # the same block again and again
        seen = start + slot < length
        places = ((block * BLOCK_SIZE + slot) * NUM_KV_HEADS + kv_head)[:, None] * DIM + dim[None, :]
        k = tl.load(k_ptr + places, mask=seen[:, None], other=0.0)
        v = tl.load(v_ptr + places, mask=seen[:, None], other=0.0)
        weights = tl.exp(tl.where(seen, tl.sum(q[None, :] * k, 1) * scale, float("-inf")))
        total += tl.sum(weights, 0)
        acc += tl.sum(weights[:, None] * v, 0)
    tl.store(out_ptr + row, acc / total)


@triton.jit
def no_mask(out_ptr, q_ptr, k_ptr, v_ptr, tables_ptr, lengths_ptr, table_stride, scale,
            NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    seq, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    dim, slot = tl.arange(0, DIM), tl.arange(0, BLOCK_SIZE)
    row = (seq * NUM_HEADS + head) * DIM + dim
    length = tl.load(lengths_ptr + seq)
    q = tl.load(q_ptr + row)
    total, acc = 0.0, tl.zeros([DIM], tl.float32)
    for start in range(0, length, BLOCK_SIZE):
        block = tl.load(tables_ptr + seq * table_stride + start // BLOCK_SIZE)
        places = ((block * BLOCK_SIZE + slot) * NUM_KV_HEADS + kv_head)[:, None] * DIM + dim[None, :]
        k, v = tl.load(k_ptr + places), tl.load(v_ptr + places)
        weights = tl.exp(tl.sum(q[None, :] * k, 1) * scale)
        total += tl.sum(weights, 0)
        acc += tl.sum(weights[:, None] * v, 0)
    tl.store(out_ptr + row, acc / total)


@triton.jit
def writes_one_head(out_ptr, q_ptr, k_ptr, v_ptr, tables_ptr, lengths_ptr, table_stride, scale,
                    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    seq, head = tl.program_id(0), tl.program_id(1)
    dim = tl.arange(0, DIM)
    tl.store(out_ptr + seq * NUM_HEADS * DIM + dim, tl.load(q_ptr + (seq * NUM_HEADS + head) * DIM + dim))


WRONG = {
    "check_join": (mean_of_the_shares, adds_sums_as_they_are, overflows),
    "check_paged_decode": (gathers_everything, reads_whole_blocks, gives_heads_their_keys_in_turn),
    "check_paged_decode_kernel": (no_table, no_mask, writes_one_head),
}
