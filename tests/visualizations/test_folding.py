"""Long lines of Python, folded for a page: shorter, and the same program."""

import ast
from pathlib import Path

import pytest

import nanovllm
from visualizations.folding import folded

FILES = sorted(Path(nanovllm.__file__).parent.rglob("*.py"))


def shown(source: str, columns: int) -> list[str]:
    return [line for lines in folded(source, columns) for line in lines]


def meaning(source: str) -> str:
    """The program, in which the words of docstrings count and their lines do not."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = " ".join(node.value.value.split())
    return ast.dump(tree)


@pytest.mark.parametrize("columns", [72, 90])
def test_every_file_of_the_engine_stays_the_same_program_in_ninety_columns(columns):
    num_folded = num_long = 0
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        lines = folded(source, columns)
        text = "\n".join(line for some in lines for line in some)
        assert meaning(text) == meaning(source), file
        assert len(lines) == len(source.split("\n"))
        num_folded += sum(some != [row] for some, row in zip(lines, source.split("\n"), strict=True))
        num_long += sum(len(line) > columns for some in lines for line in some)
    assert num_folded > 1000
    assert num_long <= num_folded // (200 if columns == 90 else 30)  # what has no place to break, such as a long pattern


@pytest.mark.parametrize(("source", "wanted"), [
    ("call(first_argument, second_argument, third)", ["call(first_argument,", "     second_argument, third)"]),
    ("answer = first_number + second_number - the_third",
     ["answer = first_number \\", "        + second_number \\", "        - the_third"]),
    ("x = 1  # because it has to begin somewhere", ["# because it has to begin", "# somewhere", "x = 1"]),
    ("raise ValueError(f'{name} is none of those there are')",
     ["raise ValueError(", "        f'{name} is none '", "        f'of those there '", "        f'are')"]),
    ("call('what is said of it', of=one, by=all_others)",
     ["call('what is said of it',", "     of=one, by=all_others)"]),
    ("raise ValueError(f'{name} is not there, '\n                 'look')",  # the line behind follows the one that moved
     ["raise ValueError(", "        f'{name} is not '", "        f'there, '", "        'look')"]),
    ("short = 1", ["short = 1"])])
def test_where_a_line_is_broken(source, wanted):
    assert shown(source, 28) == wanted and meaning("\n".join(wanted)) == meaning(source)
