"""Solutions of chapter 09."""

import torch


def owner(row, cu_seqlens_q, context_lens):
    which = max(i for i in range(len(context_lens)) if cu_seqlens_q[i] <= row)
    return which, context_lens[which] - (cu_seqlens_q[which + 1] - row)


def prepare(items, block_size):
    input_ids, positions, slots, cu_seqlens_q, last_rows = [], [], [], [0], []
    for item in items:
        seq = item.seq
        for position in range(item.start, item.start + item.num_tokens):
            input_ids.append(seq.token_ids[position])
            positions.append(position)
            slot = seq.block_table[position // block_size] * block_size + position % block_size
            slots.append(slot if position >= seq.num_cached_tokens else -1)
        cu_seqlens_q.append(len(input_ids))
        if item.samples:
            last_rows.append(len(input_ids) - 1)
    longest = max(len(item.seq.block_table) for item in items)
    return {"input_ids": input_ids, "positions": positions, "slot_mapping": slots, "cu_seqlens_q": cu_seqlens_q,
            "context_lens": [item.start + item.num_tokens for item in items],
            "block_tables": [item.seq.block_table + [0] * (longest - len(item.seq.block_table)) for item in items],
            "last_rows": last_rows}


def next_step(drawn, positions, block_tables, block_size):
    positions = positions + 1
    blocks = block_tables.gather(1, (positions // block_size)[:, None].to(torch.int64))[:, 0].to(torch.int64)
    return drawn, positions, blocks * block_size + positions % block_size, positions + 1
