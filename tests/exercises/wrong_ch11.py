"""Plausible wrong answers to chapter 11: name of the check -> answers that must fail it, each with a hint of its own."""

import torch

from chapters.exercises.ch11 import BLOCK_SIZE
from chapters.exercises.solutions import ch11 as solution


def _slots(rows):
    return [table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE for _, position, table in rows]


def makes_new_tensors(buffers, rows):
    solution.fill(buffers, rows)
    buffers.slot_mapping = torch.tensor(_slots(rows) + [-1] * (4 - len(rows)), device=buffers.slot_mapping.device)


def leaves_old_rows(buffers, rows):
    old = buffers.slot_mapping.clone()
    solution.fill(buffers, rows)
    buffers.slot_mapping[len(rows):] = old[len(rows):]


def pads_with_zero(buffers, rows):
    solution.fill(buffers, rows)
    buffers.slot_mapping[len(rows):] = 0


def forgets_its_own_token(buffers, rows):
    solution.fill(buffers, rows)
    buffers.context_lens[:len(rows)] -= 1


def multiples_of_sixteen(max_num_seqs):
    """What a small engine shipped with: no graph for 17 to 20 sequences when 20 may run."""
    return [1, 2, 4, 8, *range(16, max_num_seqs + 1, 16)]


def past_the_cap(max_num_seqs):
    return [1, 2, 4, *range(8, max_num_seqs + 8, 8)]


def powers_of_two(max_num_seqs):
    return sorted({1, max_num_seqs, *(2**i for i in range(10) if 2**i < max_num_seqs)})


def every_size(max_num_seqs):
    return list(range(1, max_num_seqs + 1))


def divides_by_zero(logits, temperatures, top_k, noise):
    return (logits / temperatures[:, None] + noise).argmax(-1)


def lets_all_tokens_in(logits, temperatures, top_k, noise):
    return solution.choose(logits, temperatures, torch.zeros_like(top_k), noise)


def one_too_many(logits, temperatures, top_k, noise):
    return solution.choose(logits, temperatures, torch.where(top_k > 0, top_k + 1, 0), noise)


def takes_zero_for_one(logits, temperatures, top_k, noise):
    return solution.choose(logits, temperatures, top_k.clamp(min=1), noise)


def asks_on_the_host(logits, temperatures, top_k, noise):
    if bool((temperatures == 0).all()):
        return logits.argmax(-1)
    return solution.choose(logits, temperatures, top_k, noise)


def decides_while_it_is_recorded(logits, temperatures, top_k, noise):
    rows = [row if t == 0 else row / t + drawn for row, t, drawn in zip(logits, temperatures.tolist(), noise)]
    least = [row.topk(min(k or 50, 50)).values[-1] for row, k in zip(logits, top_k.tolist())]
    return torch.stack([score.masked_fill(row < low, -torch.inf) for score, row, low in zip(rows, logits, least)]).argmax(-1)


def scales_in_place(logits, temperatures, top_k, noise):
    chosen = solution.choose(logits, temperatures, top_k, noise)
    logits.div_(torch.where(temperatures == 0, 1.0, temperatures)[:, None])
    return chosen


def forgets_the_end_of_the_row(logits, temperatures, top_k, noise):
    """Right for any top_k up to the vocabulary; beyond it, the last place is read as if it were the first."""
    last = torch.where(top_k > logits.shape[-1], 1, top_k)
    return solution.choose(logits, temperatures, last, noise)


WRONG = {
    "check_fill": (makes_new_tensors, leaves_old_rows, pads_with_zero, forgets_its_own_token),
    "check_capture_sizes": (multiples_of_sixteen, past_the_cap, powers_of_two, every_size),
    "check_choose": (divides_by_zero, lets_all_tokens_in, one_too_many, takes_zero_for_one, asks_on_the_host,
                     decides_while_it_is_recorded, scales_in_place, forgets_the_end_of_the_row),
}
