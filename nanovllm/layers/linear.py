"""Matrix products, whole or split over ranks: by output columns first, by input rows after, then one sum."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovllm.layers.tensor_parallel import TensorParallel


class ReplicatedLinear(nn.Module):
    """y = x Wᵀ + b, the same on every rank. weight: [out_features, in_features].

    The base of the family: it owns its parameters, created empty, and knows where a checkpoint's tensor goes
    (`target`) and which share of it is this rank's (`share`). It never initialises them: a weight that no file fills is
    the loader's error.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype), requires_grad=False) if bias else None

    def target(self, name: str, part: str | None) -> Tensor:
        """The slice of parameter `name` that checkpoint tensor `part` fills; `part` names a piece of a packed weight."""
        return getattr(self, name)

    def share(self, name: str, part: str | None) -> tuple[int, int, int]:
        """(dim, index, count): a checkpoint's tensor is cut along dim into count equal shares; ours is number index."""
        return 0, 0, 1

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class ColumnParallelLinear(ReplicatedLinear):
    """Each rank computes some of the outputs; no communication. May hold several projections packed into one weight.

    parts: name -> number of output features over all ranks, in the order in which they lie in the weight.
    """

    def __init__(self, in_features: int, parts: dict[str, int], bias: bool, tp: TensorParallel, **factory: Any):
        self.sizes = {part: tp.shard(f"{part} features", size) for part, size in parts.items()}
        super().__init__(in_features, sum(self.sizes.values()), bias, **factory)
        self.tp = tp

    def target(self, name: str, part: str | None) -> Tensor:
        start = 0
        for other, size in self.sizes.items():
            if other == part:
                return getattr(self, name)[start:start + size]
            start += size
        raise KeyError(f"{part!r} is not a part of this weight; it has {', '.join(self.sizes)}")

    def share(self, name: str, part: str | None) -> tuple[int, int, int]:
        return 0, self.tp.rank, self.tp.size


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections in one product; heads are what is split.

    With fewer KV heads than ranks each KV head is held by several ranks, next to the query heads that use it.
    """

    def __init__(self, in_features: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, tp: TensorParallel,
                 **factory: Any):
        self.kv_copies = max(1, tp.size // num_kv_heads)
        self.num_heads = tp.shard("num_attention_heads", num_heads)
        self.num_kv_heads = tp.shard("num_key_value_heads", num_kv_heads * self.kv_copies)
        super().__init__(in_features, {"q": num_heads * head_dim, "k": num_kv_heads * self.kv_copies * head_dim,
                                       "v": num_kv_heads * self.kv_copies * head_dim}, bias, tp, **factory)

    def share(self, name: str, part: str | None) -> tuple[int, int, int]:
        if part == "q":
            return super().share(name, part)
        return 0, self.tp.rank // self.kv_copies, self.tp.size // self.kv_copies


class RowParallelLinear(ReplicatedLinear):
    """Each rank holds some of the inputs and computes a partial sum of every output; one all-reduce completes it."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel, **factory: Any):
        super().__init__(tp.shard("in_features", in_features), out_features, bias, **factory)
        self.tp = tp

    def share(self, name: str, part: str | None) -> tuple[int, int, int]:
        return (0, 0, 1) if name == "bias" else (1, self.tp.rank, self.tp.size)

    def forward(self, x: Tensor) -> Tensor:
        # The bias belongs to the whole sum: added by every rank it would count once for each.
        return self.tp.all_reduce(F.linear(x, self.weight, self.bias if self.tp.rank == 0 else None))
