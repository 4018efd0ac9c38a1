"""Types: the package says that it has them, and every function of the kernels' files that is Python has a full signature."""

import ast
from pathlib import Path

import pytest

import nanovllm

PACKAGE = Path(nanovllm.__file__).parent
KERNELS = sorted((PACKAGE / "kernels").glob("*.py"))


def test_type_checkers_are_told_to_read_the_package():
    assert (PACKAGE / "py.typed").is_file()


def is_kernel(function: ast.FunctionDef) -> bool:
    """Whether it is under @triton.jit or @triton.jit(...)."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def unannotated(source: str) -> list[str]:
    """The functions of a file, kernels left out, that lack an annotation."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not is_kernel(node):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            needed = [a for a in arguments if a is not None and a.arg not in ("self", "cls")]
            if node.returns is None or any(a.annotation is None for a in needed):
                found.append(node.name)
    return found


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_every_python_function_of_a_kernel_file_is_annotated(path):
    """mypy is told to leave these files' signatures alone, since kernels are written in Triton's language."""
    assert unannotated(path.read_text(encoding="utf-8")) == []


def test_the_check_above_sees_what_is_missing():
    assert unannotated("def f(a, b: int) -> None: ...\ndef g(): ...\n@triton.jit\ndef k(x): ...\n") == ["f", "g"]
