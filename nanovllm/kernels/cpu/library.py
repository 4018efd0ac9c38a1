"""The CPU kernels of this folder, compiled for this very machine when they are first asked for, and called through ctypes.

C++ and not Triton, which has no CPU, nor torch.compile, which takes most of a minute at every start. A compiler takes a few
seconds, once: the result is kept in the user's cache folder, under a name made of sources, flags and machine.
"""

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovllm.errors import EngineError

FOLDER = Path(__file__).parent
SOURCES = ("step.cpp", "attention.h", "decode.h", "draw.h", "experts.h", "layers.h", "pool.h", "product.h", "step.h", "tiles.h",
           "vector.h")
# Sums may be taken in any order that is fast, but a NaN is a NaN: no -ffast-math.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
         "-pthread", "-w")


class Batch(ctypes.Structure):
    """`Batch` of step.h: a step's `Context`, and its positions."""

    _fields_ = [*((name, ctypes.c_int) for name in ("num_tokens", "num_seqs", "table_width")),
                *((name, ctypes.c_void_p) for name in ("positions", "slots", "starts", "lengths", "tables"))]


class Shape(ctypes.Structure):
    """`Shape` of step.h: what does not change from step to step."""

    _fields_ = [*((name, ctypes.c_int) for name in (
                    "num_layers", "hidden", "num_heads", "num_kv_heads", "head_dim", "intermediate", "block_size")),
                ("eps", ctypes.c_float), ("scale", ctypes.c_float),
                *((name, ctypes.c_long) for name in ("layer_stride", "bytes_of_a_core", "mlp_numbers")),
                ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p)]


class Weight(ctypes.Structure):
    """`Weight` of product.h: a weight in panels, its bias or null, and how many inputs and features it has."""

    _fields_ = [("panels", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("inputs", ctypes.c_int), ("features", ctypes.c_int)]


class Experts(ctypes.Structure):
    """`Experts` of experts.h."""

    _fields_ = [("router", Weight), *((name, ctypes.POINTER(Weight)) for name in ("gate_up", "down")),
                *((name, ctypes.c_int) for name in ("count", "active", "normalize"))]


class Layer(ctypes.Structure):
    """`Layer` of step.h."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("norm", "q_norm", "k_norm", "norm2")),
                *((name, Weight) for name in ("qkv", "o", "gate_up", "down")), ("experts", Experts)]


class Draws(ctypes.Structure):
    """`Draws` of decode.h."""

    _fields_ = [*((name, ctypes.c_void_p) for name in (
                    "embedding", "input_ids", "rows", "logits", "tokens", "temperatures", "seeds", "offsets")),
                ("head", Weight), *((name, ctypes.c_int) for name in ("num_rows", "vocab_size", "stride"))]


FLOATS, HALVES, TILES = range(3)  # `Form` of product.h
PANEL = 32


def panels_of(weight: Tensor, form: int) -> Tensor:
    """A weight [features, inputs] as `Form` says, filled up with zeros to whole panels: [num_panels, inputs * 32]."""
    depth = 1 if form == FLOATS else PANEL
    dtype = torch.float32 if form == FLOATS else torch.bfloat16
    padded = F.pad(weight.detach().to(dtype), (0, -weight.shape[1] % depth, 0, -weight.shape[0] % PANEL))
    features, inputs = padded.shape
    if form == FLOATS:
        panels = padded.view(-1, PANEL, inputs).transpose(1, 2)
    else:
        panels = padded.view(-1, 2, PANEL // 2, inputs // 2, 2).permute(0, 3, 1, 2, 4)  # pairs before halves
    return panels.reshape(features // PANEL, inputs * PANEL)


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels. Raises EngineError where there is no C++ compiler, or where it fails."""
    compiler = os.environ.get("CXX", "c++")
    try:
        # What the compiler says of itself and of the machine: another one gets a library of its own.
        macros = _run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    except OSError as error:
        raise EngineError(f"the CPU kernels need a C++ compiler, and {compiler!r} cannot be run ({error}); install one "
                          "(Debian, Ubuntu: apt install g++), name it in CXX, or use attention_backend='torch'.") from None
    digest = hashlib.sha256(f"{macros}{FLAGS}".encode())
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    file = _cache_folder() / f"cpu-kernels-{digest.hexdigest()[:16]}.so"
    if file.is_file():
        try:
            return ctypes.CDLL(str(file))
        except OSError:
            pass  # cut short, or from a machine with other libraries: made anew
    _compile(compiler, file)
    return ctypes.CDLL(str(file))


def _compile(compiler: str, file: Path) -> None:
    """Beside its place first, and then into it: two processes that start together do each other no harm."""
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        whole = Path(scratch, "step.so")
        _run([compiler, *FLAGS, "-shared", str(FOLDER / "step.cpp"), "-o", str(whole)])
        whole.replace(file)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        last = " ".join(done.stderr.split("\n")[-12:]).strip()
        raise EngineError(f"the CPU kernels could not be compiled by {command[0]!r} ({last}); name another compiler in CXX, or "
                          "use attention_backend='torch'.")
    return done.stdout


def _cache_folder() -> Path:
    """Where the user's caches lie, or a folder of this process where that cannot be written."""
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / (
            "Library/Caches" if sys.platform == "darwin" else ".cache"), "nanovllm")
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            return kept
    except (OSError, RuntimeError):  # a user without a home, as in some containers
        return Path(tempfile.mkdtemp(prefix="nanovllm-"))


def type_name(dtype: torch.dtype) -> str:
    """As the library's functions call it."""
    return str(dtype).removeprefix("torch.")
