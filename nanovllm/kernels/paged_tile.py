"""What both attention kernels do with one tile of keys: find it in the paged cache, fold it into the softmax."""

import triton
import triton.language as tl

LOG2_E: float = 1.4426950408889634  # softmax in powers of two: the hardware has exp2, not exp


@triton.jit
def key_offsets(
    table_ptr: tl.tensor, start: tl.tensor, end: tl.tensor,
    stride_block: tl.tensor, stride_slot: tl.tensor,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Where keys `start .. start + TILE` of one sequence lie, as element offsets into the cache, `[TILE]` int64.

    Keys from `end` on get the offset of block 0: harmless to read, and masked by the caller. When tiles never
    straddle a block (start is a multiple of TILE), one table entry serves the whole tile.
    """
    position = start + tl.arange(0, TILE)
    if BLOCK_SIZE % TILE == 0:
        block = tl.load(table_ptr + start // BLOCK_SIZE).to(tl.int64)
        return block * stride_block + (start % BLOCK_SIZE + tl.arange(0, TILE)) * stride_slot
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=position < end, other=0).to(tl.int64)
    return block * stride_block + (position % BLOCK_SIZE) * stride_slot


@triton.jit
def fold_keys(
    q: tl.tensor, highest: tl.tensor, total: tl.tensor, acc: tl.tensor, k: tl.tensor, v: tl.tensor,
    visible: tl.tensor, scale_log2: tl.tensor, MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """One step of the online softmax (Milakov & Gimelshein, 2018, https://arxiv.org/abs/1805.02867).

    q: `[ROWS, HEAD_DIM]`; highest, total: `[ROWS]` float32, the running maximum (in units of log2) and sum; acc:
    `[ROWS, HEAD_DIM]` float32, the values weighted so far. k, v: `[TILE, HEAD_DIM]`. visible: `[ROWS, TILE]`, looked at only
    when MASKED. Returns highest, total and acc with the tile's keys taken in. Every row must see a key in this tile or have
    seen one before; otherwise its maximum is -inf and the difference of two is not a number.
    """
    # "ieee": float32 stays float32 instead of being rounded to tf32's 10 bits. It changes nothing for halves.
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    rescale = tl.exp2(highest - new_highest)
    weights = tl.exp2(scores - new_highest[:, None])
    total = total * rescale + tl.sum(weights, 1)
    acc = acc * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_highest, total, acc


@triton.jit
def fold_tile(
    q: tl.tensor, highest: tl.tensor, total: tl.tensor, acc: tl.tensor,
    k_ptr: tl.tensor, v_ptr: tl.tensor, offsets: tl.tensor, visible: tl.tensor, in_range: tl.tensor, scale_log2: tl.tensor,
    HEAD_DIM: tl.constexpr, MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Read a tile's keys and values, at offsets and where in_range (`[TILE]`, looked at only when MASKED), and fold them."""
    dim = tl.arange(0, HEAD_DIM)
    places = offsets[:, None] + dim[None, :]
    # A slot that was never written may hold NaN, and 0 * NaN is NaN: values that are masked must also be read as 0.
    if MASKED:
        k = tl.load(k_ptr + places, mask=in_range[:, None], other=0.0)
        v = tl.load(v_ptr + places, mask=in_range[:, None], other=0.0)
    else:
        k = tl.load(k_ptr + places)
        v = tl.load(v_ptr + places)
    highest, total, acc = fold_keys(q, highest, total, acc, k, v, visible, scale_log2, MASKED)
    return highest, total, acc
