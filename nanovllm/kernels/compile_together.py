"""Compiling many kernels at once, on all cores, instead of each when it is first launched."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
import triton

_one_at_a_time = threading.Lock()


def compile_together(launches: Callable[[], None]) -> None:
    """Call `launches`, and compile and load every kernel that it launches; none of them runs.

    A launch is `kernel[grid](...)`. In its place stands Triton's own `kernel.warmup(..., grid=grid)`, which only compiles,
    and which hands that to threads where `AsyncCompileMode` is on. What other threads launch meanwhile is launched as ever.
    So `launches` may run a step whose results nobody reads: what its kernels would have written is whatever was in memory,
    and torch must not use it as an index. A kernel that does not compile is left out, and says why when it is launched.

    Raises what `launches` raises, and AttributeError with a Triton that has no `AsyncCompileMode` (before 3.5).
    """
    this_thread, launch = threading.get_ident(), triton.KernelInterface.__getitem__
    kernels: list[Any] = []

    def compile_only(kernel: Any, grid: Any) -> Any:
        if threading.get_ident() != this_thread:
            return launch(kernel, grid)
        return lambda *args, **constants: kernels.append(kernel.warmup(*args, grid=grid, **constants))

    def compile_all() -> None:
        # A thread has a current device of its own, the first one unless it is told.
        tell = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_available() else None
        with ThreadPoolExecutor(initializer=tell) as pool:
            with triton.AsyncCompileMode(pool, ignore_errors=True):
                launches()
            list(pool.map(_load, dict.fromkeys(kernels)))

    with _one_at_a_time:
        triton.KernelInterface.__getitem__ = compile_only
        try:
            copy_context().run(compile_all)  # a context of its own: a mode that is not left in order ends with it
        finally:
            triton.KernelInterface.__getitem__ = launch


def _load(kernel: Any) -> None:
    """Onto the device. Many a Triton (3.6, not 3.9) also has a C compiler make the function that launches it."""
    with suppress(Exception):  # it is raised when the kernel is launched
        compiled = kernel.result() if hasattr(kernel, "result") else kernel
        compiled[(1, 1, 1)]  # with arguments behind it, this would launch
