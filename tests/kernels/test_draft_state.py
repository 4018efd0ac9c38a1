"""The kernels between a drafting step's forward passes do what their plain twins do."""

import copy
from dataclasses import fields

import pytest
import torch

from nanovllm.engine.drafts_ngram import NgramIndex
from nanovllm.kernels import draft_state as fast
from nanovllm.layers import draft_state as plain
from nanovllm.utils.draft_state import DraftState

N, MOST, LENGTH, BLOCK_SIZE = 37, 5, 64, 4


def random_state(device, seed, with_text):
    gen = torch.Generator().manual_seed(seed)

    def numbers(low, high, like):
        return torch.randint(low, high, like.shape, generator=gen).to(like.dtype).to(device)

    state = DraftState.empty(N, MOST, LENGTH, BLOCK_SIZE, device, with_text)
    rows = state.rows
    for tensor, low, high in ((rows.cached, -1, LENGTH - 2 * MOST - 2), (rows.drawn, -1, 4), (rows.stored_from, 0, LENGTH),
                              (rows.num_prompt_tokens, 1, 9), (rows.seeds, 0, 1 << 40), (rows.top_k, 1, 50),
                              (rows.block_tables, 0, 100), (state.num_drafts, 0, MOST + 1), (state.found, 0, MOST + 1),
                              (state.drafts, 0, 4), (state.before, -1, 4), (state.tokens, 0, 4), (state.accepted, -1, MOST + 1),
                              (state.last, -1, 4), (state.text, 0, 3)):
        tensor.copy_(numbers(low, high, tensor))
    rows.cached[::9] = -1
    rows.temperatures.uniform_(generator=gen) if device == "cpu" else rows.temperatures.uniform_()
    rows.top_p.fill_(0.9)
    return state


def tensors(state):
    for field in fields(state):
        value = getattr(state, field.name)
        if field.name == "rows":
            yield from ((f"rows.{inner.name}", getattr(value, inner.name)) for inner in fields(value))
        else:
            yield field.name, value


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_drafts", [1, 3, MOST])
def test_each_does_what_its_twin_does(device, seed, num_drafts):
    state = random_state(device, seed, with_text=seed % 2 == 1)
    twin = copy.deepcopy(state)
    gen = torch.Generator().manual_seed(seed)  # by chance alone no draft of thirty-seven might be right
    drawn = torch.randint(-1, 4, (N * (num_drafts + 1),), generator=gen).to(device)
    guesses = torch.randint(-1, 4, (N,), generator=gen).to(device)
    results = []
    for module, mine in ((plain, state), (fast, twin)):
        result = torch.zeros(N, 2 + 2 * num_drafts, dtype=torch.int64, device=device)
        for _ in range(2):
            module.settle(mine, N)
            module.first_draft_rows(mine, N, BLOCK_SIZE)
            first = {name: value.clone() for name, value in tensors(mine)}
            module.next_draft_rows(mine, N, BLOCK_SIZE, num_drafts, guesses)
            module.rows_to_check(mine, N, num_drafts, BLOCK_SIZE)
            module.accept(mine, N, num_drafts, drawn, result)
        results.append((first, result))
    assert torch.equal(results[0][1], results[1][1])
    for name, value in tensors(state):
        assert torch.equal(value, dict(tensors(twin))[name]), name
        assert torch.equal(results[0][0][name], results[1][0][name]), name
    assert (state.accepted > 0).any() and (state.accepted == 0).any()


@pytest.mark.parametrize("shortest, longest", [(1, 1), (1, 3), (2, 4)])
def test_look_up_finds_what_the_index_finds(device, shortest, longest):
    num_found = 0
    for seed in range(3):
        state = random_state(device, seed, with_text=True)
        twin = copy.deepcopy(state)
        plain.look_up(state, N, MOST, shortest, longest)
        fast.look_up(twin, N, MOST, shortest, longest)
        assert torch.equal(state.found, twin.found) and torch.equal(state.drafts, twin.drafts)
        for row in range(N):
            text = state.text[row, :int(state.rows.cached[row]) + 1].tolist()
            expected = NgramIndex(shortest, longest).propose(text, MOST) if text else []
            assert state.drafts[row, :int(state.found[row])].tolist() == expected
            num_found += bool(expected)
    assert num_found > N
