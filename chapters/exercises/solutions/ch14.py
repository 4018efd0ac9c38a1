"""Solutions of chapter 14."""

import statistics


def step_floor(work, bandwidth, peak):
    return sum(max(num_bytes / bandwidth, flops / peak) for num_bytes, flops in work)


def largest_batch(total, weights, activations, bytes_per_token, length, block_size):
    num_blocks = max(0, total - weights - activations) // (bytes_per_token * block_size)
    return num_blocks // -(-length // block_size)


def fair_ratio(a, b):
    """Pairs by turns, each order as often as the other: what drifts hits both alike. The median forgets interruptions."""
    ratios = []
    for turn in range(30):
        if turn % 2:
            second, first = b(), a()
        else:
            first, second = a(), b()
        ratios.append(second / first)
    return statistics.median(ratios)
