"""Types: the package says that it has them, and mypy is told to pass over no signature."""

import tomllib
from pathlib import Path

import nanovllm

PACKAGE = Path(nanovllm.__file__).parent
MYPY = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]


def test_type_checkers_are_told_to_read_the_package():
    assert (PACKAGE / "py.typed").is_file()


def test_mypy_is_strict_about_every_signature_kernels_included():
    assert MYPY["strict"] is True and {"nanovllm", "visualizations", "benchmarks"} <= set(MYPY["files"])
    lenient = ("allow_untyped_defs", "allow_incomplete_defs", "ignore_errors", "follow_imports")
    assert not any(name in part for part in (MYPY, *MYPY["overrides"]) for name in lenient)
