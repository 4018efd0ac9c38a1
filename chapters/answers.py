"""A reader's answers, taken out of the notebooks they stand in, so that a check can run in a terminal.

Of a chapter's code cells only imports, functions, classes and constants are taken, in order, and written to one module. Cells
that run an engine or draw a picture are left alone.
"""

import ast
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from chapters.contents import HERE, Chapter
from chapters.exercises.verdict import Verdict

KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PLAIN = (ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop, ast.Load)


def is_definition(node: ast.stmt) -> bool:
    """Whether a statement of a cell belongs to an answer: a definition, or a constant such as `MOST = 8 * 1024`."""
    constant = isinstance(node, ast.Assign) and all(isinstance(part, PLAIN) for part in ast.walk(node.value))
    return constant or isinstance(node, KEPT)


def definitions(chapter: Chapter) -> str:
    """The imports, functions, classes and constants of a chapter's cells as the text of a module, each guarded: one that needs
    something which only a running chapter has (an open engine, say) is left out, and the others stay."""
    parts = ["from __future__ import annotations"]
    for source in chapter.sources["code"]:
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a cell with a magic, or one that is being written
            continue
        for node in tree.body:
            if is_definition(node):
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                text = "\n".join(source.splitlines()[first - 1:node.end_lineno])
                body = "\n".join(f"    {line}" if line else "" for line in text.splitlines())
                parts.append(f"try:\n{body}\nexcept NameError:\n    pass")
    return "\n\n".join(parts) + "\n"


def module_of(chapter: Chapter) -> ModuleType:
    """The definitions as a module, from a real file: Triton reads the source of its kernels."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))  # chapters import `exercises` from their own folder
    folder = Path(tempfile.mkdtemp(prefix="answers-"))
    file = folder / f"answers_{chapter.number}.py"
    file.write_text(definitions(chapter), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verdicts(chapter: Chapter, only: str | None = None) -> dict[str, Verdict]:
    """{name of a check: what it says} for the answers that stand in the notebook, as saved.

    only: part of a check's name, or of its title.
    """
    answers = module_of(chapter)
    checks = importlib.import_module(f"exercises.{chapter.module_name}")
    found: dict[str, Verdict] = {}
    for exercise in chapter.exercises:
        if only and only.lower() not in f"{exercise.name} {exercise.title}".lower():
            continue
        answer: Any = getattr(answers, exercise.answer, None)
        if answer is None:
            found[exercise.name] = Verdict(exercise.title, False, f"the notebook does not define {exercise.answer}; "
                                           "take the cell from a fresh copy of the chapter")
        else:
            found[exercise.name] = getattr(checks, exercise.name)(answer)
    return found
