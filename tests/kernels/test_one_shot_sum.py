"""Sums over ranks without barriers, rank by rank: what the other rank would have sent before is put there by the test."""

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs the real thing: tests/gpu")

CAPACITY, SIZES = 2048, [1600, 64, 2048, 1024, 16]


@pytest.fixture
def kernel():
    from nanovllm.kernels import one_shot_sum
    return one_shot_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sums_of_any_sizes_in_any_order_find_their_places_empty_and_are_right(kernel, dtype):
    torch.manual_seed(0)
    memory = [torch.empty(kernel.Inboxes.numel(2, CAPACITY), dtype=dtype) for _ in range(2)]
    inboxes = [kernel.Inboxes.over(own, [each.data_ptr() for each in memory]) for own in memory]
    empty, sums = torch.iinfo(inboxes[0].own.dtype).min, [0, 0]  # of each program
    for i in range(25):
        numbers = torch.randn(2, SIZES[i * i % 5]).to(dtype)
        numbers[:, ::7], numbers[:, 3::7] = -0.0, torch.tensor(torch.inf)
        numbers[i % 2, 5] = torch.nan
        expected = (numbers[0].float() + numbers[1].float()).to(dtype)
        first, second = (0, 1) if i % 2 else (1, 0)
        inbox = inboxes[first].own
        for program, start in enumerate(range(0, numbers.shape[1], kernel.BLOCK)):
            places = inbox[sums[program] % 3, second, start:start + kernel.BLOCK]
            assert (places == empty).all()
            sent = numbers[second, start:start + kernel.BLOCK] + 0.0  # -0.0 + 0.0 is 0.0
            places[:len(sent)] = sent.view(places.dtype)
            sums[program] += 1
        for rank in (first, second):
            kernel.one_shot_sum(numbers[rank], inboxes[rank], rank)
        assert torch.equal(numbers.view(inbox.dtype)[0], numbers.view(inbox.dtype)[1]), "the same bits on both"
        torch.testing.assert_close(numbers[0], expected, rtol=0, atol=0, equal_nan=True)
        assert [own.counts.tolist() for own in inboxes] == [sums, sums]


def test_three_ranks_add_up_in_rank_order(kernel):
    memory = [torch.empty(kernel.Inboxes.numel(3, CAPACITY)) for _ in range(3)]
    inboxes = [kernel.Inboxes.over(own, [each.data_ptr() for each in memory]) for own in memory]
    numbers = torch.tensor([[1.0], [2.0**-24], [2.0**-24]]).repeat(1, 8)  # (1 + small) + small is 1, small + small is not
    for rank in (1, 2):
        inboxes[0].own[0, rank, :8] = numbers[rank].view(torch.int32)
    inboxes[1].own[0, 2, :8] = numbers[2].view(torch.int32)
    for rank in range(3):
        kernel.one_shot_sum(numbers[rank], inboxes[rank], rank)
    assert torch.equal(numbers, torch.ones(3, 8))
