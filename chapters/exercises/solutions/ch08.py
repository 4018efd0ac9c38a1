"""Solutions of chapter 08."""

import torch
import triton
import triton.language as tl


def join(parts):
    highest = torch.stack([highest for highest, _, _ in parts]).max(0).values
    rescales = [(part_highest - highest).exp() for part_highest, _, _ in parts]
    total = sum(rescale * part_total for rescale, (_, part_total, _) in zip(rescales, parts))
    acc = sum(rescale[:, None] * part_acc for rescale, (_, _, part_acc) in zip(rescales, parts))
    return acc / total[:, None]


def paged_decode(q, k_cache, v_cache, block_table, length, scale):
    block_size, num_kv_heads = k_cache.shape[1:3]
    q = q.unflatten(0, (num_kv_heads, -1))  # the query heads of one key/value head side by side
    highest = torch.full(q.shape[:2], -torch.inf, device=q.device)
    total, acc = torch.zeros_like(highest), torch.zeros_like(q)
    for place, start in enumerate(range(0, length, block_size)):
        block, count = int(block_table[place]), min(block_size, length - start)
        k, v = k_cache[block, :count], v_cache[block, :count]
        scores = torch.einsum("hgd,lhd->hgl", q, k) * scale
        new_highest = torch.maximum(highest, scores.max(-1).values)
        rescale, weights = (highest - new_highest).exp(), (scores - new_highest[..., None]).exp()
        total = total * rescale + weights.sum(-1)
        acc = acc * rescale[..., None] + torch.einsum("hgl,lhd->hgd", weights, v)
        highest = new_highest
    return (acc / total[..., None]).flatten(0, 1)


@triton.jit
def paged_decode_kernel(out_ptr, q_ptr, k_ptr, v_ptr, tables_ptr, lengths_ptr, table_stride, scale,
                        NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    seq, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    dim, slot = tl.arange(0, DIM), tl.arange(0, BLOCK_SIZE)
    row = (seq * NUM_HEADS + head) * DIM + dim
    length = tl.load(lengths_ptr + seq)
    q = tl.load(q_ptr + row)
    highest, total = float("-inf"), 0.0
    acc = tl.zeros([DIM], tl.float32)
    for start in range(0, length, BLOCK_SIZE):
        block = tl.load(tables_ptr + seq * table_stride + start // BLOCK_SIZE).to(tl.int64)
        seen = start + slot < length
        places = ((block * BLOCK_SIZE + slot) * NUM_KV_HEADS + kv_head)[:, None] * DIM + dim[None, :]
        k = tl.load(k_ptr + places, mask=seen[:, None], other=0.0)
        v = tl.load(v_ptr + places, mask=seen[:, None], other=0.0)
        scores = tl.where(seen, tl.sum(q[None, :] * k, 1) * scale, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 0))
        rescale, weights = tl.exp(highest - new_highest), tl.exp(scores - new_highest)
        total = total * rescale + tl.sum(weights, 0)
        acc = acc * rescale + tl.sum(weights[:, None] * v, 0)
        highest = new_highest
    tl.store(out_ptr + row, acc / total)
