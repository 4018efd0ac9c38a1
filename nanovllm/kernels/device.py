"""What a launch must know about the device it goes to."""

from functools import lru_cache

import torch


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side, at one for each multiprocessor."""
    if device.type != "cuda":
        return 8  # the interpreter: enough that work is split, few enough to be quick
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache
def has_pdl(device: torch.device) -> bool:
    """Programmatic dependent launch, Hopper and later: a kernel may start while the one before it still runs.

    It must call `gdc_wait` before it touches anything that another kernel writes; weights it may read at once.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache
def has_tma(device: torch.device) -> bool:
    """The tensor memory accelerator, Hopper and later, which copies whole tiles; the interpreter plays it, too."""
    return device.type != "cuda" or has_pdl(device)
