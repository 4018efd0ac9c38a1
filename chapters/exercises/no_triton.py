"""For platforms without a Triton package (macOS, Windows): kernels can be defined and read, and say that they do not run."""

import sys
from types import ModuleType

from torch.utils._triton import has_triton_package


class NotRun:
    """What `triton.jit` makes of a function here. Launching it computes nothing, and prints that."""

    def __init__(self, fn):
        self.fn = fn

    def __getitem__(self, grid):
        return lambda *args, **kwargs: print(f"{self.fn.__name__} was not run: Triton has no package for this platform")


def jit(fn=None, **options):
    return NotRun(fn) if fn else NotRun


def install() -> None:
    """Let `import triton` succeed with this in its place."""
    has_triton_package()  # PyTorch asks once; it must learn that there is none
    triton, language = ModuleType("triton"), ModuleType("triton.language")
    triton.jit, triton.language, language.constexpr, language.tensor = jit, language, int, object
    triton.cdiv = lambda a, b: -(-a // b)
    triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()
    sys.modules |= {"triton": triton, "triton.language": language}
