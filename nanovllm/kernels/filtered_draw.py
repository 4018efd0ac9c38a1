"""Drawing among the tokens that top-k, top-p and min-p leave, without sorting the vocabulary.

Few tokens of a hundred thousand have a chance. The first kernel reads the logits, keeps the best of every few dozen, and
takes as a bound the k-th best of those: as many tokens stand at or above it, and seldom many more. The second reads the
logits again and gathers what reaches the bound; where top-p stands alone it sums up the softmax, too, and what stands above
the token that was drawn without filters. The third has a row's few candidates in registers, finds both thresholds there
(`kernels/threshold.py`) and draws.

Where the candidates do not suffice (a flat distribution, a large k, thousands of equal scores), the draw goes over the whole
row (`kernels/filtered_row.py`). With top_p 0.95, nineteen rows of twenty need neither: top-p leaves what was drawn without it.

The tokens are those of `layers.sampler.filtered_draw`: no probability is summed as a float, and the order in which
candidates are found does not matter.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanovllm.kernels.filtered_row import NO_TOP_K, WEIGHTS, draw_from_row
from nanovllm.kernels.noise import gumbel, random_bits, row_key
from nanovllm.kernels.sample import best_token
from nanovllm.kernels.threshold import divided, key_value, softmax_weight, sort_key, threshold, top_p_target
from nanovllm.utils.filters import NO_TOP_K as OFF
from nanovllm.utils.filters import Filters


class Cut(NamedTuple):
    """How the work is cut: powers of two that change the speed, never the result."""

    tile: int = 4096  # tokens of a program
    group: int = 64  # tokens of which the best is kept
    few: int = 256  # candidates that are looked at in a small tile
    capacity: int = 2048  # candidates for which there is room

    @classmethod
    def for_rows(cls, num_rows: int) -> "Cut":
        """Few rows need many programs each; many rows are read faster by programs that each read more."""
        return cls() if num_rows < MANY_ROWS else cls(tile=16384, group=128)


MANY_ROWS = 32
CHUNK = 2048  # tokens that a program gathers from at once
GUESS = tl.constexpr(512)  # how many top-p keeps at most, it is hoped, where no top-k says so
NOT_ENOUGH = tl.constexpr(-2)
LOWEST = tl.constexpr(0x007FFFFF)  # `sort_key` of -inf


@triton.jit
def _row_filters(
    top_k_ptr: tl.tensor, top_p_ptr: tl.tensor, min_p_ptr: tl.tensor, row: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """(top_k, top_p, min_p, whether any is on)."""
    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    return top_k, top_p, min_p, (top_k != NO_TOP_K) | (top_p < 1) | (min_p > 0)


@triton.jit
def _survey_kernel(
    groups_ptr: tl.tensor, arrived_ptr: tl.tensor, highest_ptr: tl.tensor, bound_ptr: tl.tensor, count_ptr: tl.tensor,
    total_ptr: tl.tensor, above_ptr: tl.tensor,
    logits_ptr: tl.tensor, temperatures_ptr: tl.tensor, top_k_ptr: tl.tensor, top_p_ptr: tl.tensor, min_p_ptr: tl.tensor,
    stride_row: tl.tensor, vocab_size: tl.tensor,
    TILE: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, CAPACITY: tl.constexpr, LOW: tl.constexpr,
) -> None:  # fmt: skip
    """Program (part, row): the best of each of WIDTH groups of its tokens. Who is the last of a row finds its highest logit
    and the bound.

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
            # More groups with a candidate than there is room for candidates: none needs to be gathered.
            crowded = tl.sum((inside & (sort_key(best) >= bound) & (best > float("-inf"))).to(tl.int32), 0) > CAPACITY
            tl.store(count_ptr + row, tl.where(crowded, CAPACITY + 1, 0))
            tl.store(total_ptr + row, 0)
            tl.store(above_ptr + row, 0)
            tl.store(arrived_ptr + row, 0)  # for the next launch


@triton.jit
def _gather_kernel(
    values_ptr: tl.tensor, tokens_ptr: tl.tensor, count_ptr: tl.tensor, total_ptr: tl.tensor, above_ptr: tl.tensor,
    drawn_ptr: tl.tensor, highest_ptr: tl.tensor, bound_ptr: tl.tensor,
    logits_ptr: tl.tensor, temperatures_ptr: tl.tensor, top_k_ptr: tl.tensor, top_p_ptr: tl.tensor, min_p_ptr: tl.tensor,
    stride_row: tl.tensor, vocab_size: tl.tensor,
    TILE: tl.constexpr, CHUNK: tl.constexpr, CAPACITY: tl.constexpr, FAST: tl.constexpr,
) -> None:  # fmt: skip
    """Program (part, row): the part's candidates go to the row's list, its weights to the row's sums.

    Each candidate asks for its index itself: of thousands of tokens one or two do, and none once the list is full.
    """
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    top_k, top_p, _, active = _row_filters(top_k_ptr, top_p_ptr, min_p_ptr, row)
    if active:
        bound = tl.load(bound_ptr + row).to(tl.uint32, bitcast=True)
        weighed = (top_k == NO_TOP_K) & (top_p < 1)
        temperature = tl.load(temperatures_ptr + row)
        highest = divided(tl.load(highest_ptr + row), temperature, FAST)
        drawn = tl.maximum(tl.load(drawn_ptr + row), 0)  # below 0: the row is not looked at again
        score = divided(tl.load(logits_ptr + row * stride_row + drawn).to(tl.float32), temperature, FAST)
        total, above = tl.zeros([CHUNK], tl.int64), tl.zeros([CHUNK], tl.int64)
        start, end = part * TILE, tl.minimum((part + 1) * TILE, vocab_size)
        if (weighed == 0) & (tl.load(count_ptr + row, cache_modifier=".cg") > CAPACITY):
            end = start
        i = tl.arange(0, CHUNK)
        row_ptr = logits_ptr + row * stride_row + i
        following = tl.load(row_ptr + start, mask=start + i < end, other=float("-inf"))
        for first in range(start, end, CHUNK):
            logits, token, inside = following.to(tl.float32), first + i, first + i < end
            following = tl.load(row_ptr + first + CHUNK, mask=token + CHUNK < end, other=float("-inf"))
            # What is forbidden, -inf, is no candidate, even if fewer are allowed than the row asks for.
            chosen = (sort_key(logits) >= bound) & (logits > float("-inf"))
            full = tl.load(count_ptr + row, cache_modifier=".cg") > CAPACITY
            chosen = tl.where(full, False, chosen)
            counts = count_ptr + row + tl.zeros([CHUNK], tl.int32)
            index = tl.atomic_add(counts, tl.full([CHUNK], 1, tl.int32), mask=chosen, sem="relaxed")
            chosen = chosen & (index < CAPACITY)
            tl.store(values_ptr + row * CAPACITY + index, logits, mask=chosen)
            tl.store(tokens_ptr + row * CAPACITY + index, token, mask=chosen)
            if weighed:
                scores = divided(logits, temperature, FAST)
                weights = tl.where(inside, softmax_weight(scores, highest), 0)
                total += weights
                above += tl.where(scores > score, weights, 0)
        if weighed:
            tl.atomic_add(total_ptr + row, tl.sum(total, 0))
            tl.atomic_add(above_ptr + row, tl.sum(above, 0))


@triton.jit
def _draw_among(
    values_ptr: tl.tensor, tokens_ptr: tl.tensor, count: tl.tensor, all_there: tl.tensor, total: tl.tensor, highest: tl.tensor,
    temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, low: tl.tensor, high: tl.tensor,
    SIZE: tl.constexpr, LOW: tl.constexpr, FAST: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The token drawn of `count` candidates; NOT_ENOUGH if there may be others that belong to them.

    all_there: there are no others above -inf.
    """
    i = tl.arange(0, SIZE)
    inside = i < count
    logits = tl.load(values_ptr + i, mask=inside, other=float("-inf"))
    token = tl.load(tokens_ptr + i, mask=inside, other=0x7FFFFFFF)
    keys = tl.where(inside, sort_key(logits), 0)
    scores = divided(logits, temperature, FAST)
    weights = tl.where(inside, softmax_weight(scores, highest), 0)
    enough = count > 0
    floor = tl.full([], float("-inf"), tl.float32)
    if (top_k != NO_TOP_K) & (count >= top_k):
        floor = divided(key_value(threshold(keys, inside.to(tl.int32), top_k, LOW)), temperature, FAST)
        weights = tl.where(scores >= floor, weights, 0)
    elif top_k != NO_TOP_K:
        enough = enough & all_there
    if top_p < 1:
        kept = tl.sum(weights, 0)
        target = top_p_target(top_p, tl.where(top_k != NO_TOP_K, kept, total))
        enough = enough & (kept >= target)
        floor = tl.maximum(floor, divided(key_value(threshold(keys, weights, target, LOW)), temperature, FAST))
    kept = inside & (scores >= floor) & (weights >= (min_p * WEIGHTS).to(tl.int64))
    scores = tl.where(kept, scores + gumbel(random_bits(low, high, token), FAST), float("-inf"))
    return tl.where(enough, best_token(scores, token)[1], NOT_ENOUGH)


@triton.jit
def _choose_kernel(
    out_ptr: tl.tensor, values_ptr: tl.tensor, tokens_ptr: tl.tensor, count_ptr: tl.tensor, total_ptr: tl.tensor,
    above_ptr: tl.tensor, highest_ptr: tl.tensor, bound_ptr: tl.tensor, logits_ptr: tl.tensor, temperatures_ptr: tl.tensor,
    seeds_ptr: tl.tensor, offsets_ptr: tl.tensor, top_k_ptr: tl.tensor, top_p_ptr: tl.tensor, min_p_ptr: tl.tensor,
    stride_row: tl.tensor, vocab_size: tl.tensor,
    FEW: tl.constexpr, CAPACITY: tl.constexpr, LOW: tl.constexpr, FAST: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Program (row): its token."""
    row = tl.program_id(0).to(tl.int64)
    top_k, top_p, min_p, active = _row_filters(top_k_ptr, top_p_ptr, min_p_ptr, row)
    drawn = tl.load(out_ptr + row).to(tl.int32)
    if active & (drawn >= 0):  # below 0: its logits are not all finite
        temperature = tl.load(temperatures_ptr + row)
        highest = divided(tl.load(highest_ptr + row), temperature, FAST)
        row_ptr = logits_ptr + row * stride_row
        total, above = tl.load(total_ptr + row), tl.load(above_ptr + row)
        weight = softmax_weight(divided(tl.load(row_ptr + drawn).to(tl.float32), temperature, FAST), highest)
        kept = (top_k == NO_TOP_K) & ((top_p >= 1) | (above < top_p_target(top_p, total)))
        if (kept & (weight >= (min_p * WEIGHTS).to(tl.int64))) == 0:  # the filters do not leave what was drawn without them
            top_k = tl.where(top_k == NO_TOP_K, NO_TOP_K, tl.minimum(top_k, vocab_size))
            count, all_there = tl.load(count_ptr + row), tl.load(bound_ptr + row).to(tl.uint32, bitcast=True) <= LOWEST
            low, high = row_key(tl.load(seeds_ptr + row), tl.load(offsets_ptr + row))
            row_values, row_tokens = values_ptr + row * CAPACITY, tokens_ptr + row * CAPACITY
            token = tl.full([], NOT_ENOUGH, tl.int32)
            if count <= FEW:
                token = _draw_among(row_values, row_tokens, count, all_there, total, highest, temperature, top_k, top_p, min_p,
                                    low, high, FEW, LOW, FAST)  # fmt: skip
            elif count <= CAPACITY:
                token = _draw_among(row_values, row_tokens, count, all_there, total, highest, temperature, top_k, top_p, min_p,
                                    low, high, CAPACITY, LOW, FAST)  # fmt: skip
            if token == NOT_ENOUGH:
                token = draw_from_row(row_ptr, vocab_size, drawn, total, highest, temperature, top_k, top_p, min_p, low, high,
                                      LOW, FAST, TILE)  # fmt: skip
            tl.store(out_ptr + row, token.to(tl.int64))


def filtered_draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, filters: Filters, tokens: Tensor,
                  cut: Cut | None = None) -> Tensor:  # fmt: skip
    """As `layers.sampler.filtered_draw`, whose tokens it draws.

    logits: `[num_rows, vocab_size]`, any float dtype, last dimension contiguous. temperatures: `[num_rows]` float32, not
    0 in a row with filters. seeds, offsets, tokens: `[num_rows]` int64, contiguous; tokens, what `kernels.sample.draw` drew
    of the same rows, is written in place.
    """
    num_rows, vocab_size = logits.shape
    cut = cut or Cut.for_rows(num_rows)
    tile, capacity = cut.tile, cut.capacity
    parts, device, width = triton.cdiv(vocab_size, tile), logits.device, tile // cut.group

    def given(values: Tensor | None, off: float, dtype: torch.dtype) -> Tensor:
        if values is None:
            return torch.full((num_rows,), off, dtype=dtype, device=device)
        return values.reshape(num_rows).to(dtype)

    rules = (temperatures, given(filters.top_k, OFF, torch.int32), given(filters.top_p, 1.0, torch.float32),
             given(filters.min_p, 0.0, torch.float32))
    groups_size = triton.next_power_of_2(parts * width)
    groups, highest = (torch.empty(num_rows * n, dtype=torch.float32, device=device) for n in (groups_size, 1))
    arrived = torch.zeros(num_rows, dtype=torch.int32, device=device)
    # Each allocated by itself, so that all begin at a multiple of 16 bytes: where some do not, Triton compiles anew.
    bound, count = (torch.empty(num_rows, dtype=torch.int32, device=device) for _ in range(2))
    total, above = (torch.empty(num_rows, dtype=torch.int64, device=device) for _ in range(2))
    values = torch.empty(num_rows, capacity, dtype=torch.float32, device=device)
    candidates = torch.empty(num_rows, capacity, dtype=torch.int32, device=device)
    low = {torch.bfloat16: 16, torch.float16: 12}.get(logits.dtype, 0)  # bits of a float32 that its numbers leave empty
    # Without fused multiply-adds: the same roundings as in PyTorch.
    exact = {"enable_fp_fusion": False}
    _survey_kernel[(parts, num_rows)](
        groups, arrived, highest, bound, count, total, above, logits, *rules, logits.stride(0), vocab_size,
        TILE=tile, WIDTH=width, GROUPS=groups_size, CAPACITY=capacity, LOW=low, num_warps=8, **exact,
    )  # fmt: skip
    _gather_kernel[(parts, num_rows)](
        values, candidates, count, total, above, tokens, highest, bound, logits, *rules, logits.stride(0), vocab_size,
        TILE=tile, CHUNK=min(tile, CHUNK), CAPACITY=capacity, FAST=logits.is_cuda, num_warps=8, **exact,
    )  # fmt: skip
    _choose_kernel[(num_rows,)](
        tokens, values, candidates, count, total, above, highest, bound, logits, temperatures, seeds, offsets, *rules[1:],
        logits.stride(0), vocab_size, FEW=min(cut.few, capacity), CAPACITY=capacity, LOW=low, FAST=logits.is_cuda,
        TILE=min(tile, 4096), num_warps=16, **exact,
    )  # fmt: skip
    return tokens
