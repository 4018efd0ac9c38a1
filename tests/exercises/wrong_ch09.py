"""Plausible wrong answers to chapter 09: name of the check -> answers that must fail it, each with a hint of its own."""

from types import SimpleNamespace

import torch

from chapters.exercises.ch09 import NAMES
from chapters.exercises.solutions.ch09 import prepare
from nanovllm.engine.step_inputs import Layout


def counts_from_the_chunk(row, cu_seqlens_q, context_lens):
    which = max(i for i in range(len(context_lens)) if cu_seqlens_q[i] <= row)
    return which, row - cu_seqlens_q[which]


def gives_the_border_to_the_left(row, cu_seqlens_q, context_lens):
    which = max((i for i in range(len(context_lens)) if cu_seqlens_q[i] < row), default=0)
    return which, context_lens[which] - (cu_seqlens_q[which + 1] - row)


def begins_at_the_beginning(items, block_size):
    whole = [SimpleNamespace(seq=i.seq, start=0, num_tokens=i.start + i.num_tokens, samples=i.samples) for i in items]
    return prepare(whole, block_size)


def counts_along_the_row(items, block_size):
    tensors = prepare(items, block_size)
    return tensors | {"positions": list(range(len(tensors["input_ids"])))}


def stores_what_is_shared(items, block_size):
    slots = [item.seq.block_table[p // block_size] * block_size + p % block_size
             for item in items for p in range(item.start, item.start + item.num_tokens)]
    return prepare(items, block_size) | {"slot_mapping": slots}


def sees_this_step_only(items, block_size):
    return prepare(items, block_size) | {"context_lens": [item.num_tokens for item in items]}


def draws_from_every_sequence(items, block_size):
    tensors = prepare(items, block_size)
    return tensors | {"last_rows": [end - 1 for end in tensors["cu_seqlens_q"][1:]]}


def forgets_to_pad(items, block_size):
    return prepare(items, block_size) | {"block_tables": [item.seq.block_table for item in items]}


def uses_the_finished_module(items, block_size):
    layout = Layout.of(items, block_size)
    return {name: getattr(layout, name) for name in NAMES}


def loops_with_int(drawn, positions, block_tables, block_size):
    after = [int(p) + 1 for p in positions]
    slots = [int(block_tables[i, p // block_size]) * block_size + p % block_size for i, p in enumerate(after)]
    return drawn, torch.tensor(after), torch.tensor(slots), torch.tensor(after) + 1


def loops_over_rows(drawn, positions, block_tables, block_size):
    after = positions + 1
    blocks = torch.stack([table.index_select(0, (p // block_size)[None])[0] for table, p in zip(block_tables, after)])
    return drawn, after, blocks.long() * block_size + after % block_size, after + 1


def always_the_neighbour(drawn, positions, block_tables, block_size):
    blocks = block_tables.gather(1, (positions // block_size)[:, None])[:, 0].long()
    return drawn, positions + 1, blocks * block_size + positions % block_size + 1, positions + 2


def does_not_see_itself(drawn, positions, block_tables, block_size):
    positions = positions + 1
    blocks = block_tables.gather(1, (positions // block_size)[:, None])[:, 0].long()
    return drawn, positions, blocks * block_size + positions % block_size, positions


def stands_still(drawn, positions, block_tables, block_size):
    blocks = block_tables.gather(1, (positions // block_size)[:, None])[:, 0].long()
    return drawn, positions, blocks * block_size + positions % block_size, positions + 1


WRONG = {
    "check_owner": (counts_from_the_chunk, gives_the_border_to_the_left),
    "check_prepare": (begins_at_the_beginning, counts_along_the_row, stores_what_is_shared, sees_this_step_only,
                      draws_from_every_sequence, forgets_to_pad, uses_the_finished_module),
    "check_next_step": (always_the_neighbour, does_not_see_itself, stands_still, loops_with_int, loops_over_rows),
}
