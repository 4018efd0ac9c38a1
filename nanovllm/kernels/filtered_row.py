"""A filtered draw that needs the whole row: no threshold of the softmax is searched for.

A draw is the best of scores with noise, so if top-p leaves the winner of all tokens, that is the draw; and if not, it leaves
only tokens with higher scores, and their winner is looked at next (rejection as in FlashInfer, Ye et al. 2025,
https://flashinfer.ai/2025/03/10/sampling.html). Top-p leaves a token if what stands above it weighs less than top-p asks for:
one pass over the row.
"""

import triton
import triton.language as tl

from nanovllm.kernels.noise import gumbel, random_bits
from nanovllm.kernels.sample import best_token
from nanovllm.kernels.threshold import divided, full_key, key_value, softmax_weight, sort_key, top_p_target
from nanovllm.utils.filters import NO_TOP_K as OFF
from nanovllm.utils.filters import WEIGHT_BITS

NO_TOP_K, WEIGHTS = tl.constexpr(OFF), tl.constexpr(2.0**WEIGHT_BITS)


@triton.jit
def _kth_score(
    row_ptr: tl.tensor, vocab_size: tl.tensor, top_k: tl.tensor, temperature: tl.tensor, LOW: tl.constexpr, FAST: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The top_k-th highest score of a whole row: as `threshold`, over memory, two bits a pass."""
    found = tl.full([], 0, tl.uint32)
    one = tl.full([], 1, tl.uint32)
    for i in range((32 - LOW) // 2):
        step = one << (30 - 2 * i)
        first, second, third = tl.zeros([TILE], tl.int32), tl.zeros([TILE], tl.int32), tl.zeros([TILE], tl.int32)
        for start in range(0, vocab_size, TILE):
            token = start + tl.arange(0, TILE)
            inside = token < vocab_size
            keys = sort_key(tl.load(row_ptr + token, mask=inside, other=float("-inf")).to(tl.float32))
            first += (inside & (keys >= found + step)).to(tl.int32)
            second += (inside & (keys >= found + 2 * step)).to(tl.int32)
            third += (inside & (keys >= found + 3 * step)).to(tl.int32)
        steps = ((tl.sum(first, 0) >= top_k).to(tl.uint32) + (tl.sum(second, 0) >= top_k).to(tl.uint32)
                 + (tl.sum(third, 0) >= top_k).to(tl.uint32))
        found += steps * step
    return divided(key_value(full_key(found, LOW)), temperature, FAST)


@triton.jit
def _best_above(
    row_ptr: tl.tensor, vocab_size: tl.tensor, highest: tl.tensor, temperature: tl.tensor, floor: tl.tensor, score: tl.tensor,
    min_p: tl.tensor, low: tl.tensor, high: tl.tensor, FAST: tl.constexpr, TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """One pass over the tokens that score `floor` or more, and more than `score`: (the token that is drawn of those which
    min-p leaves, the weight of all)."""
    least = (min_p * WEIGHTS).to(tl.int64)
    best = tl.full([TILE], float("-inf"), tl.float32)
    winner = tl.full([TILE], 0x7FFFFFFF, tl.int32)
    sums = tl.zeros([TILE], tl.int64)
    for start in range(0, vocab_size, TILE):
        token = start + tl.arange(0, TILE)
        logits = tl.load(row_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
        scores = divided(logits, temperature, FAST)
        kept = (scores >= floor) & (scores > score)  # never -inf, so never beyond the vocabulary
        weights = softmax_weight(scores, highest)
        sums += tl.where(kept, weights, 0)
        kept = kept & (weights >= least)
        scores = tl.where(kept, scores + gumbel(random_bits(low, high, token), FAST), float("-inf"))
        better = scores > best
        best, winner = tl.where(better, scores, best), tl.where(better, token, winner)
    return best_token(best, winner)[1], tl.sum(sums, 0)


@triton.jit
def draw_from_row(
    row_ptr: tl.tensor, vocab_size: tl.tensor, drawn: tl.tensor, total: tl.tensor, highest: tl.tensor, temperature: tl.tensor,
    top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, low: tl.tensor, high: tl.tensor,
    LOW: tl.constexpr, FAST: tl.constexpr, TILE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The token drawn of those that the filters leave. drawn: what was drawn without filters; total: the weight of the row."""
    floor = tl.full([], float("-inf"), tl.float32)
    token = drawn
    if top_k != NO_TOP_K:
        if top_k < vocab_size:
            floor = _kth_score(row_ptr, vocab_size, top_k, temperature, LOW, FAST, TILE)
        token, total = _best_above(row_ptr, vocab_size, highest, temperature, floor, float("-inf"), min_p, low, high,
                                   FAST, TILE)  # fmt: skip
    score = divided(tl.load(row_ptr + token).to(tl.float32), temperature, FAST)
    refused = softmax_weight(score, highest) < (min_p * WEIGHTS).to(tl.int64)
    target = top_p_target(top_p, total)
    again = (top_p < 1) | refused
    while again:
        following, above = _best_above(row_ptr, vocab_size, highest, temperature, floor, score, min_p, low, high, FAST, TILE)
        refused = refused | ((top_p < 1) & (above >= target))  # those above suffice without it
        token = tl.where(refused, following, token)
        score = divided(tl.load(row_ptr + token).to(tl.float32), temperature, FAST)
        again = refused & (top_p < 1)
        refused = above < 0  # it is as likely as min-p asks: never
    return token
