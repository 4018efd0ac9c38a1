"""The engine computes the same whatever the user's own torch code has switched on around the call."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch._C import _len_torch_function_stack

P = ParamSpec("P")
Result = TypeVar("Result")


class OnDevice(Protocol):
    device: torch.device


Owner = TypeVar("Owner", bound=OnDevice)


@contextmanager
def own_torch_state(device: torch.device) -> Iterator[None]:
    """Set `torch.autocast` and a default device aside for the block: the dtype and the device of everything are named.

    Both belong to the calling thread, so that no other notices. Costs a fraction of a microsecond where neither is on. A
    default dtype, which belongs to the whole process, is left alone: nothing here relies on it.
    """
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if _len_torch_function_stack():  # torch.get_default_device() says it too, in a hundred times the time
            stack.enter_context(torch.device("cpu"))
        yield


def in_own_torch_state(method: Callable[Concatenate[Owner, P], Result]) -> Callable[Concatenate[Owner, P], Result]:
    """A method of an object with a `device`, run in `own_torch_state`."""
    @wraps(method)
    def run(self: Owner, /, *args: P.args, **keywords: P.kwargs) -> Result:
        with own_torch_state(self.device):
            return method(self, *args, **keywords)
    return run
