"""Chapter 08 where Triton has no package: its kernels can be defined, and say that they were not run."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
sys.modules["triton"] = None  # as if it were not installed
from chapters.exercises import ch08
import triton
import triton.language as tl
from nanovllm.kernels import paged_tile

@triton.jit
def kernel(x_ptr, WIDTH: tl.constexpr):
    tl.store(x_ptr, 1)

kernel[(1,)](None, WIDTH=4)
print(paged_tile.fold_tile.fn.__name__)
print(ch08.check_paged_decode_kernel(kernel))
print(ch08.check_same_as_backends(ch08.TorchBackend(), 1))
"""


def test_kernels_say_that_they_were_not_run():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, cwd=Path(__file__).parents[2], encoding="utf-8")
    assert run.returncode == 0, run.stderr
    launched, name, verdict, compared = run.stdout.splitlines()
    assert launched == "kernel was not run: Triton has no package for this platform"
    assert name == "fold_tile"
    assert verdict.startswith("not yet · paged decode in Triton: Triton has no package")
    assert compared.startswith("1 steps as torch;")
