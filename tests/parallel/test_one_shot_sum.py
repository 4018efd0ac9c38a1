"""Sums in one shot: for which tensors, and on all ranks or on none. What is summed: tests/kernels, tests/gpu."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed._symmetric_memory as symmetric_memory

from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.parallel import one_shot_sum as module
from nanovllm.parallel.one_shot_sum import MOST_BYTES, OneShotTensorParallel, with_one_shot_sums

pytest.importorskip("triton")
from nanovllm.kernels import one_shot_sum as kernel

GPU = torch.device("cuda", 1)
MOST = MOST_BYTES // 2 // 2  # numbers of 2 bytes, two ranks


@dataclass(frozen=True)
class Rank(TensorParallel):
    """Rank 1 of two, whose collectives know what the other rank has. theirs: what it says to `smallest`, call by call."""

    rank: int = 1
    size: int = 2
    theirs: tuple[int, ...] = (1, 1, 1)

    def smallest(self, value, device):
        said.append(value)
        return min(value, self.theirs[len(said) - 1])


said: list[int] = []


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    """Two GPUs as far as setting up goes: memory, a rendezvous that works, and a first sum that is right."""
    said.clear()
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: True)
    monkeypatch.setattr(symmetric_memory, "empty", lambda n, dtype, device: torch.empty(n, dtype=dtype))
    monkeypatch.setattr(module, "_exchange", lambda tp, device, dtype, memory: shared(tp.rank, memory))
    monkeypatch.setattr(module, "_try", lambda tp, device, dtype, own: own)


def shared(rank, memory):
    return OneShotTensorParallel(rank, 2, dtype=memory.dtype, inboxes=kernel.Inboxes.over(memory, [0, 0]))


def test_takes_what_is_small_contiguous_aligned_and_of_its_dtype():
    tp = shared(0, torch.empty(kernel.Inboxes.numel(2, MOST), dtype=torch.bfloat16))
    numbers = torch.empty(2 * MOST, dtype=torch.bfloat16)
    assert tp.takes(numbers[:8]) and tp.takes(numbers[:MOST].view(-1, 4096)) and tp.takes(numbers[8:MOST])
    assert not tp.takes(numbers[:MOST + 8]), "too long"
    assert not tp.takes(numbers[:0]), "nothing to sum"
    assert not tp.takes(numbers[:12]), "not in whole pieces"
    assert not tp.takes(numbers[4:12]), "begins between two pieces"
    assert not tp.takes(numbers[:64].view(8, 8).t()), "not contiguous"
    assert not tp.takes(numbers[:8].float()), "another dtype"


def test_small_tensors_go_to_the_kernel_and_others_to_torch_distributed_on_every_rank(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: calls.append((tensor.numel(), "distributed")))
    monkeypatch.setattr(kernel, "one_shot_sum", lambda tensor, inboxes, rank: calls.append((tensor.numel(), rank)))
    for rank in (0, 1):
        tp = shared(rank, torch.empty(kernel.Inboxes.numel(2, 1024)))
        for tensor in (torch.zeros(2, 8), torch.zeros(1024), torch.zeros(1028), torch.zeros(3)):
            assert tp.all_reduce(tensor) is tensor
    assert calls == [(16, 0), (1024, 0), (1028, "distributed"), (3, "distributed"),
                     (16, 1), (1024, 1), (1028, "distributed"), (3, "distributed")]


def test_all_is_well():
    tp, reason = with_one_shot_sums(Rank(), GPU, torch.bfloat16)
    assert isinstance(tp, OneShotTensorParallel) and reason == "" and said == [1, 1, 1]
    assert tp.inboxes.own.shape == (3, 2, MOST) and tp.rank == 1


@pytest.mark.parametrize("theirs", [(0,), (1, 0), (1, 1, 0)], ids=["no memory", "no rendezvous", "wrong sum"])
def test_no_rank_has_them_if_another_has_not(theirs):
    plain = Rank(theirs=theirs)
    assert with_one_shot_sums(plain, GPU, torch.bfloat16) == (plain, "another rank could not set it up")
    assert said == [1] * len(theirs), "and none waits for a rank that does not come"


def test_a_cpu_has_none_and_asks_nobody():
    plain = Rank()
    assert with_one_shot_sums(plain, torch.device("cpu"), torch.float32) == (plain, "the ranks run on no GPU")
    assert said == []


def refuse(*args, **kwargs):
    raise RuntimeError("CUDA driver error: operation not permitted")


@pytest.mark.parametrize(("target", "name", "value", "reason", "rounds"), [
    (torch.cuda, "can_device_access_peer", lambda a, b: False, "cuda:1 cannot reach the memory of cuda:0", [0]),
    (symmetric_memory, "empty", refuse, "RuntimeError: CUDA driver error: operation not permitted", [0]),
    (symmetric_memory, "empty", lambda: None, "TypeError", [0]),  # another torch's, with other arguments
    (module, "_exchange", refuse, "RuntimeError: CUDA driver error: operation not permitted", [1, 0]),
    (module, "_try", refuse, "RuntimeError: CUDA driver error: operation not permitted", [1, 1, 0]),
], ids=["no peer access", "no memory", "another torch", "no rendezvous", "wrong sum"])  # fmt: skip
def test_what_fails_here_is_told_to_the_others_and_said(monkeypatch, target, name, value, reason, rounds):
    monkeypatch.setattr(target, name, value)
    plain = Rank()
    tp, why = with_one_shot_sums(plain, GPU, torch.bfloat16)
    assert tp is plain and reason in why and said == rounds


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_left_to_nccl(dtype):
    plain = Rank()
    tp, why = with_one_shot_sums(plain, GPU, dtype)
    assert tp is plain and str(dtype) in why and said == [0]
