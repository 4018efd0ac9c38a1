"""Solutions of chapter 11."""

import torch

from ..ch11 import BLOCK_SIZE


def fill(buffers, rows):
    buffers.slot_mapping.fill_(-1)
    buffers.context_lens.zero_()
    for row, (token, position, block_table) in enumerate(rows):
        buffers.input_ids[row] = token
        buffers.positions[row] = position
        buffers.slot_mapping[row] = block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        buffers.context_lens[row] = position + 1
        buffers.block_tables[row, :len(block_table)] = torch.tensor(block_table, device=buffers.block_tables.device)


def capture_sizes(max_num_seqs):
    sizes = [1, 2, 4]
    size = 8
    while size < max_num_seqs:
        sizes.append(size)
        size += 8 if size < 64 else 16 if size < 128 else 32 if size < 256 else 64
    return [s for s in sizes if s < max_num_seqs] + [max_num_seqs]


def choose(logits, temperatures, top_k, noise):
    greedy = temperatures == 0
    scaled = logits / torch.where(greedy, 1.0, temperatures)[:, None]
    last = (top_k - 1).clamp(0, logits.shape[-1] - 1)  # of those that stay, in descending order
    least = logits.sort(-1, descending=True).values.gather(1, last[:, None])
    cut = (top_k > 0)[:, None] & (logits < least)
    return torch.where(greedy[:, None], logits, (scaled + noise).masked_fill(cut, -torch.inf)).argmax(-1)
