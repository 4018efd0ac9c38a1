"""A CUDA graph for any device, for chapter 11: operations written down as they are launched, and launched again."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Tape(TorchDispatchMode):
    """What was launched inside the `with` block: which operation, on which tensors, into which. `replay` does it again.

    A CUDA graph for any device, slow and exact: the same operations, sizes, addresses and Python numbers. As a capturing
    stream does, it refuses whatever makes the host wait for a value or a size.
    """

    def __init__(self):
        super().__init__()
        self.launches = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if _host_must_wait(op, args):
            raise RuntimeError(f"operation not permitted while recording: {op.overloadpacket.__name__} makes the host wait for "
                               "a value that the device has yet to compute")
        out = op(*args, **(kwargs or {}))
        self.launches.append((op, args, kwargs or {}, out))
        return out

    def replay(self):
        for op, args, kwargs, out in self.launches:
            for old, new in zip(_tensors(out), _tensors(op(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor written in place: it has an address of its own
                    old.copy_(new)

    def kernels(self) -> list[str]:
        """Names of the operations that compute something; views only look at memory in another way."""
        return [name for name, _ in self.work()]

    def work(self) -> list[tuple[str, int]]:
        """Of each operation that computes something its name, and how many numbers it writes."""
        return [(op.overloadpacket.__name__, _numbers_written(op, args, out))
                for op, args, _, out in self.launches if _computes(op, args, out)]


def _tensors(out) -> list[Tensor]:
    return [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]


def _computes(op, args, out) -> bool:
    given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
    return op._schema.is_mutable or any(t.untyped_storage().data_ptr() not in given for t in _tensors(out))


def _numbers_written(op, args, out) -> int:
    """A store into a larger tensor returns all of it, and writes as much as it was given."""
    if op.overloadpacket.__name__ in ("index_put_", "index_copy_", "copy_"):
        return args[1 if op.overloadpacket.__name__ == "copy_" else -1].numel()
    return sum(t.numel() for t in _tensors(out))


def _host_must_wait(op, args) -> bool:
    if op.overloadpacket.__name__ in ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select", "equal"):
        return True
    indices = args[1] if "index" in op.overloadpacket.__name__ and len(args) > 1 and isinstance(args[1], (tuple, list)) else ()
    return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
