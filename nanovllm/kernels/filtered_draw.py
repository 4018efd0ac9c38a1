"""Drawing among the tokens that top-k, top-p and min-p leave, without sorting the vocabulary.

Few tokens of a hundred thousand have a chance. The first kernel reads the logits, keeps the best of every few dozen, and
takes as a bound the k-th best of those: as many tokens stand at or above it, and seldom many more. The second reads the
logits again, gathers what reaches the bound, and sums up the softmax where top-p stands alone. The third has a row's few
candidates in registers, finds both thresholds there (`kernels/threshold.py`) and draws. Where they do not suffice (a large
k, a flat distribution, thousands of equal scores), it goes through the whole row instead: slower, and with the same result.

The tokens are those of `layers.sampler.filtered_draw`: no probability is summed as a float.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.noise import gumbel, random_bits, row_key
from nanovllm.kernels.sample import best_token
from nanovllm.kernels.threshold import full_key, key_value, softmax_weight, sort_key, threshold, top_p_target
from nanovllm.utils.filters import NO_TOP_K as OFF
from nanovllm.utils.filters import WEIGHT_BITS, Filters

TILE, WIDTH = 4096, 64  # tokens of a program, and the groups that it makes of them
FEW, CAPACITY = 256, 2048  # candidates that are looked at in a small tile; most for which there is room
GUESS = tl.constexpr(512)  # how many top-p keeps at most, it is hoped, where no top-k says so
NO_TOP_K, WEIGHTS = tl.constexpr(OFF), tl.constexpr(2.0**WEIGHT_BITS)
NOT_ENOUGH = tl.constexpr(-2)


@triton.jit
def _row_filters(top_k_ptr, top_p_ptr, min_p_ptr, row):
    """(top_k, top_p, min_p, whether any is on)."""
    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    return top_k, top_p, min_p, (top_k != NO_TOP_K) | (top_p < 1) | (min_p > 0)


@triton.jit
def _survey_kernel(
    groups_ptr, arrived_ptr, highest_ptr, bound_ptr, count_ptr, total_ptr,
    logits_ptr, temperatures_ptr, top_k_ptr, top_p_ptr, min_p_ptr, stride_row, vocab_size,
    TILE: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Program (part, row): the best of each of WIDTH groups. Who is the last of a row finds its highest logit and the bound.

    The parts of a row, and the groups of a part, take turns: tokens that are likely together lie together.
    """
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    top_k, top_p, min_p, active = _row_filters(top_k_ptr, top_p_ptr, min_p_ptr, row)
    if active:
        i, group = tl.arange(0, TILE // WIDTH), tl.arange(0, WIDTH)
        token = (i[:, None] * tl.num_programs(0) + part) * WIDTH + group[None, :]
        logits = tl.load(logits_ptr + row * stride_row + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
        tl.store(groups_ptr + row * GROUPS + part * WIDTH + group, tl.max(logits, 0))
        tl.debug_barrier()  # all is written before it is counted
        if tl.atomic_add(arrived_ptr + row, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            each = tl.arange(0, GROUPS)
            inside = each < tl.num_programs(0) * WIDTH
            best = tl.load(groups_ptr + row * GROUPS + each, mask=inside, other=float("-inf"), cache_modifier=".cg")
            highest = tl.max(best, 0)
            # With no top-k and no top-p, min-p alone is the bound; with top-p, it needs all that the others keep.
            wanted = tl.where(top_k != NO_TOP_K, tl.minimum(top_k, vocab_size), tl.where(top_p < 1, GUESS, 0x7FFFFFFF))
            keys = tl.where(inside, sort_key(best), 0)
            bound = threshold(keys, tl.where(inside, 1, 0), wanted, LOW)
            # Two logits so near each other may be one score once they are divided by the temperature.
            bound = tl.where(bound > 16, bound - 16, 0)
            if (top_p >= 1) & (min_p > 0):
                temperature = tl.load(temperatures_ptr + row)
                slack = 1e-3 * temperature + 1e-5 * tl.abs(highest)
                bound = tl.maximum(bound, sort_key(highest + temperature * tl.log(min_p) - slack))
            tl.store(highest_ptr + row, highest)
            tl.store(bound_ptr + row, bound.to(tl.int32, bitcast=True))
            tl.store(count_ptr + row, 0)
            tl.store(total_ptr + row, 0)
            tl.store(arrived_ptr + row, 0)  # for the next launch


@triton.jit
def _gather_kernel(
    values_ptr, tokens_ptr, count_ptr, total_ptr, highest_ptr, bound_ptr,
    logits_ptr, temperatures_ptr, top_k_ptr, top_p_ptr, min_p_ptr, stride_row, vocab_size,
    TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program (part, row): the part's candidates go to the row's list, its weights to the row's total."""
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    top_k, top_p, _, active = _row_filters(top_k_ptr, top_p_ptr, min_p_ptr, row)
    if active:
        token = part * TILE + tl.arange(0, TILE)
        inside = token < vocab_size
        logits = tl.load(logits_ptr + row * stride_row + token, mask=inside, other=float("-inf")).to(tl.float32)
        chosen = inside & (sort_key(logits) >= tl.load(bound_ptr + row).to(tl.uint32, bitcast=True))
        count = tl.sum(chosen.to(tl.int32), 0)
        if count > 0:
            index = tl.atomic_add(count_ptr + row, count) + tl.cumsum(chosen.to(tl.int32), 0) - 1
            chosen = chosen & (index < CAPACITY)
            tl.store(values_ptr + row * CAPACITY + index, logits, mask=chosen)
            tl.store(tokens_ptr + row * CAPACITY + index, token, mask=chosen)
        if (top_k == NO_TOP_K) & (top_p < 1):
            temperature = tl.load(temperatures_ptr + row)
            highest = tl.math.div_rn(tl.load(highest_ptr + row), temperature)
            weights = softmax_weight(tl.math.div_rn(logits, temperature), highest)
            tl.atomic_add(total_ptr + row, tl.sum(tl.where(inside, weights, 0), 0))


@triton.jit
def _draw_among(
    values_ptr, tokens_ptr, count, total, highest, temperature, top_k, top_p, min_p, low, high,
    SIZE: tl.constexpr, LOW: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The token drawn of `count` candidates; NOT_ENOUGH if there must be others that belong to them."""
    i = tl.arange(0, SIZE)
    inside = i < count
    logits = tl.load(values_ptr + i, mask=inside, other=float("-inf"))
    token = tl.load(tokens_ptr + i, mask=inside, other=0x7FFFFFFF)
    keys = tl.where(inside, sort_key(logits), 0)
    scores = tl.math.div_rn(logits, temperature)
    weights = tl.where(inside, softmax_weight(scores, highest), 0)
    enough = count > 0
    floor = tl.full([], float("-inf"), tl.float32)
    if top_k != NO_TOP_K:
        floor = tl.math.div_rn(key_value(threshold(keys, inside.to(tl.int32), top_k, LOW)), temperature)
        weights = tl.where(scores >= floor, weights, 0)
        enough = count >= top_k
    if top_p < 1:
        kept = tl.sum(weights, 0)
        target = top_p_target(top_p, tl.where(top_k != NO_TOP_K, kept, total))
        enough = enough & (kept >= target)
        floor = tl.maximum(floor, tl.math.div_rn(key_value(threshold(keys, weights, target, LOW)), temperature))
    kept = inside & (scores >= floor) & (weights >= (min_p * WEIGHTS).to(tl.int64))
    scores = tl.where(kept, scores + gumbel(random_bits(low, high, token), FAST), float("-inf"))
    return tl.where(enough, best_token(scores, token)[1], NOT_ENOUGH)


@triton.jit
def _row_threshold(
    row_ptr, vocab_size, temperature, highest, floor, target, WEIGHED: tl.constexpr, LOW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """As `threshold`, over a whole row in memory, two bits a pass. WEIGHED: by weight, of scores from `floor` on."""
    found = tl.full([], 0, tl.uint32)
    one = tl.full([], 1, tl.uint32)
    for i in range((32 - LOW) // 2):
        step = one << (30 - 2 * i)
        dtype = tl.int64 if WEIGHED else tl.int32
        first, second, third = tl.zeros([TILE], dtype), tl.zeros([TILE], dtype), tl.zeros([TILE], dtype)
        for start in range(0, vocab_size, TILE):
            token = start + tl.arange(0, TILE)
            inside = token < vocab_size
            logits = tl.load(row_ptr + token, mask=inside, other=float("-inf")).to(tl.float32)
            keys = sort_key(logits)
            if WEIGHED:
                scores = tl.math.div_rn(logits, temperature)
                weights = tl.where(inside & (scores >= floor), softmax_weight(scores, highest), 0)
            else:
                weights = inside.to(tl.int32)
            first += tl.where(keys >= found + step, weights, 0)
            second += tl.where(keys >= found + 2 * step, weights, 0)
            third += tl.where(keys >= found + 3 * step, weights, 0)
        steps = ((tl.sum(first, 0) >= target).to(tl.uint32) + (tl.sum(second, 0) >= target).to(tl.uint32)
                 + (tl.sum(third, 0) >= target).to(tl.uint32))
        found += steps * step
    return full_key(found, LOW)


@triton.jit
def _draw_from_row(
    row_ptr, vocab_size, highest, temperature, top_k, top_p, min_p, low, high,
    LOW: tl.constexpr, FAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """As `_draw_among`, when only the whole row is enough."""
    floor = tl.full([], float("-inf"), tl.float32)
    if top_k < vocab_size:
        key = _row_threshold(row_ptr, vocab_size, temperature, highest, floor, top_k, False, LOW, TILE)
        floor = tl.math.div_rn(key_value(key), temperature)
    if top_p < 1:
        sums = tl.zeros([TILE], tl.int64)
        for start in range(0, vocab_size, TILE):
            token = start + tl.arange(0, TILE)
            logits = tl.load(row_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
            scores = tl.math.div_rn(logits, temperature)
            sums += tl.where((token < vocab_size) & (scores >= floor), softmax_weight(scores, highest), 0)
        target = top_p_target(top_p, tl.sum(sums, 0))
        key = _row_threshold(row_ptr, vocab_size, temperature, highest, floor, target, True, LOW, TILE)
        floor = tl.maximum(floor, tl.math.div_rn(key_value(key), temperature))
    least = (min_p * WEIGHTS).to(tl.int64)
    best = tl.full([TILE], float("-inf"), tl.float32)
    winner = tl.full([TILE], 0x7FFFFFFF, tl.int32)
    for start in range(0, vocab_size, TILE):
        token = start + tl.arange(0, TILE)
        logits = tl.load(row_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
        scores = tl.math.div_rn(logits, temperature)
        kept = (token < vocab_size) & (scores >= floor) & (softmax_weight(scores, highest) >= least)
        scores = tl.where(kept, scores + gumbel(random_bits(low, high, token), FAST), float("-inf"))
        better = scores > best
        best, winner = tl.where(better, scores, best), tl.where(better, token, winner)
    return best_token(best, winner)[1]


@triton.jit
def _choose_kernel(
    out_ptr, values_ptr, tokens_ptr, count_ptr, total_ptr, highest_ptr, logits_ptr, temperatures_ptr, seeds_ptr, offsets_ptr,
    top_k_ptr, top_p_ptr, min_p_ptr, stride_row, vocab_size,
    FEW: tl.constexpr, CAPACITY: tl.constexpr, LOW: tl.constexpr, FAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (row): its token."""
    row = tl.program_id(0).to(tl.int64)
    top_k, top_p, min_p, active = _row_filters(top_k_ptr, top_p_ptr, min_p_ptr, row)
    if active & (tl.load(out_ptr + row) >= 0):  # below 0: its logits are not all finite
        top_k = tl.where(top_k == NO_TOP_K, NO_TOP_K, tl.minimum(top_k, vocab_size))
        temperature, highest = tl.load(temperatures_ptr + row), tl.load(highest_ptr + row)
        count, total = tl.load(count_ptr + row), tl.load(total_ptr + row)
        low, high = row_key(tl.load(seeds_ptr + row), tl.load(offsets_ptr + row))
        highest = tl.math.div_rn(highest, temperature)
        row_values, row_tokens = values_ptr + row * CAPACITY, tokens_ptr + row * CAPACITY
        token = tl.full([], NOT_ENOUGH, tl.int32)
        if count <= FEW:
            token = _draw_among(row_values, row_tokens, count, total, highest, temperature, top_k, top_p, min_p, low, high,
                                FEW, LOW, FAST)  # fmt: skip
        elif count <= CAPACITY:
            token = _draw_among(row_values, row_tokens, count, total, highest, temperature, top_k, top_p, min_p, low, high,
                                CAPACITY, LOW, FAST)  # fmt: skip
        if token == NOT_ENOUGH:
            token = _draw_from_row(logits_ptr + row * stride_row, vocab_size, highest, temperature, top_k, top_p, min_p,
                                   low, high, LOW, FAST, TILE)  # fmt: skip
        tl.store(out_ptr + row, token.to(tl.int64))


def filtered_draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, filters: Filters, tokens: Tensor,
                  tile: int = TILE, few: int = FEW, capacity: int = CAPACITY) -> Tensor:  # fmt: skip
    """As `layers.sampler.filtered_draw`, whose tokens it draws.

    logits: `[num_rows, vocab_size]`, any float dtype, last dimension contiguous. temperatures: `[num_rows]` float32, not
    0 in a row with filters. seeds, offsets, tokens: `[num_rows]` int64, contiguous; tokens is written in place. tile, few,
    capacity: powers of two; they change the speed, never the result.
    """
    num_rows, vocab_size = logits.shape
    parts, device = triton.cdiv(vocab_size, tile), logits.device

    def given(values: Tensor | None, off: float, dtype: torch.dtype) -> Tensor:
        if values is None:
            return torch.full((num_rows,), off, dtype=dtype, device=device)
        return values.reshape(num_rows).to(dtype)

    rules = (temperatures, given(filters.top_k, OFF, torch.int32), given(filters.top_p, 1.0, torch.float32),
             given(filters.min_p, 0.0, torch.float32))
    groups_size = triton.next_power_of_2(parts * WIDTH)
    groups, highest = (torch.empty(num_rows * n, dtype=torch.float32, device=device) for n in (groups_size, 1))
    arrived = torch.zeros(num_rows, dtype=torch.int32, device=device)
    bound, count = torch.empty(2, num_rows, dtype=torch.int32, device=device)
    total = torch.empty(num_rows, dtype=torch.int64, device=device)
    values = torch.empty(num_rows, capacity, dtype=torch.float32, device=device)
    candidates = torch.empty(num_rows, capacity, dtype=torch.int32, device=device)
    low = {torch.bfloat16: 16, torch.float16: 12}.get(logits.dtype, 0)  # bits of a float32 that its numbers leave empty
    # Without fused multiply-adds: the same roundings as in PyTorch.
    exact = {"enable_fp_fusion": False}
    _survey_kernel[(parts, num_rows)](
        groups, arrived, highest, bound, count, total, logits, *rules, logits.stride(0), vocab_size,
        TILE=tile, WIDTH=WIDTH, GROUPS=groups_size, LOW=low, num_warps=8, **exact,
    )  # fmt: skip
    _gather_kernel[(parts, num_rows)](
        values, candidates, count, total, highest, bound, logits, *rules, logits.stride(0), vocab_size,
        TILE=tile, CAPACITY=capacity, num_warps=8, **exact,
    )  # fmt: skip
    _choose_kernel[(num_rows,)](
        tokens, values, candidates, count, total, highest, logits, temperatures, seeds, offsets, *rules[1:], logits.stride(0),
        vocab_size, FEW=min(few, capacity), CAPACITY=capacity, LOW=low, FAST=logits.is_cuda,
        TILE=min(tile, 4096), num_warps=16, **exact,
    )  # fmt: skip
    return tokens
