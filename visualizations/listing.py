"""The source of a function or class, shown as code: highlighted in the colours of the page, with the file it stands in."""

import ast
import contextlib
import inspect
import textwrap
import tokenize
from pathlib import Path
from typing import Any

from nanovllm.utils.checks import check
from visualizations.folding import folded

ROOT = Path(__file__).parents[1]
COLUMNS = 90  # what a page shows; files have 128


class Listing:
    """Some lines of a file. A notebook shows them highlighted, a terminal as they are."""

    def __init__(self, source: str, file: str) -> None:
        self.source, self.file = source, file

    def __repr__(self) -> str:
        return self.source

    def _repr_markdown_(self) -> str:
        """Markdown, which JupyterLab, the book and GitHub each colour for their own light and dark pages."""
        return f"[`{self.file}`](../{self.file})\n\n```python\n{self.source}\n```"


def listing(thing: Any, *, docstring: bool = False, until: str | None = None, since: str | None = None,
            only: tuple[str, ...] = ()) -> Listing:
    """The source of a function, method, property or class of this repository.

    docstring: with the docstrings, which the reference shows, too. since, until: only the lines from the first one that holds
    `since` to the first one, from there on, that holds `until`; both are looked for in the file's own lines, before those of
    more than 90 columns are folded. only: of these lines the first that holds each of the words, in order, and three dots for
    what is left out. Raises ValueError where no line holds them.
    """
    function: Any = thing.fget if isinstance(thing, property) else inspect.unwrap(thing)
    lines, _ = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines)).rstrip()
    if not docstring:
        source = _without_docstrings(source)
    rows = source.split("\n")
    begin = _row_with(since, rows, 0) if since else 0
    end = _row_with(until, rows, begin) + 1 if until else len(rows)
    shown = rows[begin:end]
    if only:
        shown = _with_dots(shown, sorted({_row_with(words, shown, 0) for words in only}))
    part = textwrap.dedent("\n".join(shown))
    with contextlib.suppress(tokenize.TokenError, IndentationError):  # half a statement stays as it is
        part = "\n".join(line for lines in folded(part, COLUMNS) for line in lines)
    return Listing(part, _in_the_repository(Path(inspect.getsourcefile(function) or "")))


def _in_the_repository(file: Path) -> str:
    """Where a file stands in the repository, also one of a copy of its chapters, which a reader may keep elsewhere."""
    file = file.resolve()
    if file.is_relative_to(ROOT):
        return file.relative_to(ROOT).as_posix()
    parts = file.parts
    return "/".join(parts[parts.index("chapters"):]) if "chapters" in parts else file.name


def _row_with(words: str, rows: list[str], begin: int) -> int:
    found = next((i for i in range(begin, len(rows)) if words in rows[i]), None)
    check(found is not None, "words", words, f"in one of the {len(rows) - begin} lines", "look at the source again")
    return found or 0


def _with_dots(rows: list[str], kept: list[int]) -> list[str]:
    """The kept rows, and three dots for each stretch of others before and between them, as far in as the row behind it."""
    lines: list[str] = []
    for before, row in zip([-1, *kept], kept, strict=False):
        if row > before + 1:
            lines.append(" " * (len(rows[row]) - len(rows[row].lstrip())) + "...")
        lines.append(rows[row])
    return lines


def _without_docstrings(source: str) -> str:
    """Lines are taken out, nothing is written anew: comments and layout stay."""
    rows = source.split("\n")
    drop: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) or ast.get_docstring(node) is None:
            continue
        text = node.body[0]
        if len(node.body) > 1:  # a body that is a docstring alone keeps it
            drop |= set(range(text.lineno - 1, text.end_lineno or text.lineno))
            if text.end_lineno and not rows[text.end_lineno].strip() and isinstance(node, ast.ClassDef):
                drop.add(text.end_lineno)
    return "\n".join(row for i, row in enumerate(rows) if i not in drop)
