"""Top-k, top-p and min-p: which tokens a draw may take, decided so that every device decides alike.

A softmax summed in another order, or an exponential rounded in another place, would move the border of top-p now and then.
So probabilities are compared as whole numbers: `softmax_weights` computes 2**40 times a token's probability over the most
likely one's with nothing but sums and products of float32, each rounded once, and whole numbers have the same sum in any
order. `kernels/filtered_draw.py` finds the same tokens without a sort.
"""

import torch
from torch import Tensor

from nanovllm.utils.filters import EXP2, LOG2_E, SHARE_BITS, WEIGHT_BITS, Filters


def softmax_weights(scores: Tensor) -> Tensor:
    """2**40 exp(score - the row's highest), rounded down: [num_rows, vocab_size] float32 -> the same in int64."""
    power = ((scores - scores.amax(-1, keepdim=True)) * LOG2_E).clamp_(min=-64)
    whole = power.floor()
    part = power - whole
    value = torch.full_like(part, EXP2[-1])
    for constant in (*EXP2[-2::-1], 1.0):
        value = value * part + constant
    scale = (whole.to(torch.int32) + (WEIGHT_BITS + 127) << 23).view(torch.float32)  # 2**(whole + 40), by its exponent
    return (value * scale).to(torch.int64)


def top_p_target(top_p: Tensor, total: Tensor) -> Tensor:
    """The weight that the tokens kept must reach: top_p * total, rounded down, at least 1. total: int64, below 2**62."""
    share = (top_p * 2.0**SHARE_BITS).to(torch.int64)
    low = total & ((1 << SHARE_BITS) - 1)
    return ((total >> SHARE_BITS) * share + (low * share >> SHARE_BITS)).clamp_(min=1)


def filter_logits(scores: Tensor, filters: Filters) -> Tensor:
    """Set to -inf what each row's filters exclude. scores: [num_filtered, vocab_size], divided by temperature already.

    Of equal scores all stay or none does: top_k keeps every token that scores as high as the k-th, as in transformers,
    and top_p every token that scores as high as the one with which the sum reaches it.
    """
    top_k, top_p, min_p = filters.top_k, filters.top_p, filters.min_p
    vocab_size = scores.shape[-1]
    if top_k is not None or top_p is not None:
        ordered = scores.sort(-1, descending=True).values
        if top_k is not None:
            kth = ordered.gather(-1, top_k.long().clamp(max=vocab_size) - 1)
            scores = scores.masked_fill(scores < kth, float("-inf"))
            ordered = ordered.masked_fill(ordered < kth, float("-inf"))
        if top_p is not None:
            reached = softmax_weights(ordered).cumsum(-1)
            short = reached < top_p_target(top_p, reached[:, -1:])
            last = ordered.gather(-1, short.sum(-1, keepdim=True).clamp(max=vocab_size - 1))
            scores = scores.masked_fill((scores < last) & (top_p < 1), float("-inf"))
    if min_p is not None:
        least = (min_p * 2.0**WEIGHT_BITS).to(torch.int64)
        scores = scores.masked_fill(softmax_weights(scores) < least, float("-inf"))
    return scores
