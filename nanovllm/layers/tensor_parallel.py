"""Which slice of the model this process holds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanovllm.utils.checks import check


@dataclass(frozen=True)
class TensorParallel:
    """This process's place among those that share a model (Megatron-LM, Shoeybi et al. 2019).

    Handed to every layer that splits, so that no layer asks a global process group. At size 1 both collectives are the
    identity and torch.distributed is not even imported.
    """

    rank: int = 0
    size: int = 1
    group: object = None

    def shard(self, what: str, total: int) -> int:
        """Size of one rank's share of `total`. Raises InvalidArgument when it does not divide."""
        check(total % self.size == 0, what, total, f"divisible by tensor_parallel_size={self.size}",
              "choose a size that divides it")
        return total // self.size

    def smallest(self, value: int, device: torch.device) -> int:
        """The least of the ranks' values. device: where their tensors live."""
        if self.size > 1:
            import torch.distributed as dist
            least = torch.tensor(value, dtype=torch.int64, device=device)
            dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
            value = int(least)
        return value

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            import torch.distributed as dist
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_gather(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """Every rank's tensor, joined along `dim` in rank order."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts, dim)
