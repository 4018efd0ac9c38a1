"""Plausible wrong answers to chapter 14: name of the check -> answers that must fail it, each with a hint of its own."""

import statistics


def adds_both(work, bandwidth, peak):
    return sum(b / bandwidth + f / peak for b, f in work)


def one_roof_for_all(work, bandwidth, peak):
    return max(sum(b for b, _ in work) / bandwidth, sum(f for _, f in work) / peak)


def in_milliseconds(work, bandwidth, peak):
    return 1e3 * sum(max(b / bandwidth, f / peak) for b, f in work)


def no_blocks(total, weights, activations, bytes_per_token, length, block_size):
    return max(0, total - weights - activations) // (bytes_per_token * length)


def forgets_activations(total, weights, activations, bytes_per_token, length, block_size):
    return max(0, total - weights) // (bytes_per_token * block_size) // -(-length // block_size)


def one_after_the_other(a, b):
    first = [a() for _ in range(30)]
    return statistics.median(b() for _ in range(30)) / statistics.median(first)


def the_mean(a, b):
    return statistics.mean(1 / (a() / b()) for _ in range(30))


def too_often(a, b):
    return statistics.median(b() / a() for _ in range(500))


WRONG = {
    "check_step_floor": [adds_both, one_roof_for_all, in_milliseconds],
    "check_largest_batch": [no_blocks, forgets_activations],
    "check_fair_ratio": [one_after_the_other, the_mean, too_often],
}
