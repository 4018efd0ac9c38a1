"""Sums in one shot over two GPUs: right to the bit in every replay, whichever rank comes late."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2 or not torch.cuda.can_device_access_peer(0, 1),
                                reason="needs two GPUs that see each other's memory")
WIDTH, TOKENS, ROUNDS = 4096, (1, 3, 256, 8, 64), 100


def rank_of_two(rank, store, dtype):
    from nanovllm.layers.tensor_parallel import TensorParallel
    from nanovllm.parallel.one_shot_sum import with_one_shot_sums

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=2, device_id=device)
    tp, why_not = with_one_shot_sums(TensorParallel(rank, 2), device, dtype)
    assert why_not == ""
    tensors = [torch.zeros(n, WIDTH, dtype=dtype, device=device) for n in TOKENS]
    assert all(map(tp.takes, tensors)) and not tp.takes(torch.empty(16384, WIDTH, dtype=dtype, device=device))

    def sums():
        for tensor in tensors:
            tp.all_reduce(tensor)

    sums()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        sums()
    generator = torch.Generator(device).manual_seed(1)  # each rank draws what both put in
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for i in range(ROUNDS):
        numbers = [torch.randn(2, *tensor.shape, device=device, generator=generator).to(dtype) for tensor in tensors]
        for tensor, both in zip(tensors, numbers, strict=True):
            both[:, :, ::9] = -0.0
            tensor.copy_(both[rank])
        if i % 3 == rank:
            torch.cuda._sleep(100_000 * (i % 5))
        (graph.replay if i % 2 else sums)()
        for tensor, both in zip(tensors, numbers, strict=True):
            wrong += (tensor != (both[0].float() + both[1].float()).to(dtype)).sum()
    large = tp.all_reduce(torch.full((16384, WIDTH), rank + 1.0, dtype=dtype, device=device))
    assert int(wrong) == 0 and bool((large == 3).all())
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_of_two_gpus_are_right_to_the_bit(tmp_path, dtype):
    mp.spawn(rank_of_two, (str(tmp_path / "store"), dtype), nprocs=2)
