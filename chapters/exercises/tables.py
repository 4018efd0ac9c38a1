"""Small tables with units, for a chapter's numbers: drawn by a notebook, aligned in a terminal."""

from collections.abc import Sequence
from typing import Any


class Table:
    """A header, rows of values and a line of where they come from. A notebook draws it; text and numbers are what it holds.

    header: what each column shows, with its unit. rows: values; numbers are rounded to what can be read (3 digits, thousands
    separated), texts stay. source: the line below, for instance the machine, the date and the commit.
    """

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[Any]], source: str = "") -> None:
        self.header, self.source = list(header), source
        self.rows = [[shown(value) for value in row] for row in rows]
        self.numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(self.header))]

    def __repr__(self) -> str:
        table = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.header))]
        lines = ["  ".join(cell.rjust(width) if number else cell.ljust(width)
                           for cell, width, number in zip(row, widths, self.numeric)).rstrip() for row in table]
        return "\n".join([*lines, *([self.source] if self.source else [])])

    def _repr_markdown_(self) -> str:
        rule = ["---:" if number else "---" for number in self.numeric]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (self.header, rule, *self.rows)]
        return "\n".join([*lines, *(["", f"*{self.source}*"] if self.source else [])])


def shown(value: Any) -> str:
    """A value as a cell: 27204.3 is 27,204; 0.69151 is 0.692; whole numbers keep every digit."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
