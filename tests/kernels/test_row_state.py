"""The rows' kernels and their plain twins leave the same state, whatever was in it."""

import copy
from dataclasses import fields

import pytest
import torch

from nanovllm.engine.decode_rows import RECORD_SIZE
from nanovllm.layers import row_state
from nanovllm.utils.row_state import RECORD, RowState

NUM_ROWS, MAX_BLOCKS, BLOCK_SIZE = 300, 5, 16


def random_state(device) -> RowState:
    state = RowState.empty(NUM_ROWS, MAX_BLOCKS, device)
    for field in fields(state):
        tensor = getattr(state, field.name)
        if tensor.dtype == torch.float32:
            tensor.uniform_(0, 2)
        else:
            tensor.random_(0, MAX_BLOCKS * BLOCK_SIZE - 2)
    state.cached[torch.rand(NUM_ROWS) < 0.3] = -1
    return state


def same(a: RowState, b: RowState) -> None:
    for field in fields(a):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


@pytest.mark.parametrize("num_rows", [1, 7, 128, 300])
def test_advance(device, num_rows):
    from nanovllm.kernels import row_state as kernels

    torch.manual_seed(num_rows)
    state = random_state(device)
    twin = copy.deepcopy(state)
    for _ in range(2):
        row_state.advance(state, num_rows, BLOCK_SIZE)
        kernels.advance(twin, num_rows, BLOCK_SIZE)
        same(state, twin)


@pytest.mark.parametrize(("num_records", "num_entries"), [(0, 1), (1, 0), (5, 200), (300, 7)])
def test_write_rows(device, num_records, num_entries):
    from nanovllm.kernels import row_state as kernels

    torch.manual_seed(num_records)
    state = random_state(device)
    twin, drawn = copy.deepcopy(state), torch.randint(1000, (50,), device=device)
    records = torch.randint(0, 60, (num_records, len(RECORD)), device=device)
    records[:, 0] = torch.randperm(NUM_ROWS)[:num_records]
    records[::4, 1] = -1
    records[:, 4] += 2**62
    for column in (5, 7, 8):
        records[:, column] = torch.rand(num_records, device=device).view(torch.int32)
    records[::2, -1] = -1 - torch.randint(50, (len(records[::2]),), device=device)
    places = torch.randperm(NUM_ROWS * MAX_BLOCKS)[:num_entries].to(device)
    entries = torch.stack((places, torch.randint(9999, (num_entries,), device=device)), 1)
    row_state.write_rows(state, records, entries, drawn)
    kernels.write_rows(twin, records, entries, drawn)
    same(state, twin)
    row = records[:, 0]
    assert torch.equal(state.top_k[row].long(), records[:, 6])
    assert torch.equal(state.seeds[row], records[:, 4]) and float(state.temperatures.max()) <= 2


def test_the_host_writes_records_of_that_size():
    assert len(RECORD) == RECORD_SIZE
