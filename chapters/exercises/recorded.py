"""Measurements that a GPU made and the repository keeps, shown with the machine, the date and the commit they come from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nanovllm

from .tables import Table

# Of the repository: beside these chapters, or, where they are a copy that a reader keeps elsewhere, beside the engine.
ROOTS = (Path(__file__).parents[2], Path(nanovllm.__file__).parents[1])
RESULTS = next((root / "benchmarks" / "results" for root in ROOTS if (root / "benchmarks" / "results").is_dir()),
               ROOTS[0] / "benchmarks" / "results")


def recorded_rows(subject: str, folder: Path = RESULTS) -> list[tuple[str, list]]:
    """(where and when, rows) of every results file of a GPU that holds the key `subject`."""
    found = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(result, dict) and subject in result and "device" in result:
            date, commit = result.get("date", "no date"), result.get("commit", "not noted")
            rows = result[subject] if isinstance(result[subject], list) else [result[subject]]
            found.append((f"recorded on {result['device']}, {date}, commit {commit}", rows))
    return found


def recorded_table(subject: str, columns: Mapping[str, str | tuple[str, float]], *,
                   where: Callable[[dict[str, Any]], bool] = lambda row: True, folder: Path = RESULTS) -> Table:
    """The newest recorded run of `subject` as a small table with units, and below it where and when it was recorded.

    columns: {key of a row: what the column shows, with its unit, or (that, a factor to multiply with)}, in the table's order.
    where: which rows. Where no results file has the subject (chapters without the repository), a table without rows that says
    so. Raises LookupError when no row is left.
    """
    found = recorded_rows(subject, folder)
    if not found:
        headers = [told if isinstance(told, str) else told[0] for told in columns.values()]
        return Table(headers, [], f"No recorded GPU run of {subject!r} is here: the results stand in the repository.")
    source, rows = max(found, key=lambda one: one[0].partition(", ")[2])  # by date
    headers = {key: (told, 1) if isinstance(told, str) else told for key, told in columns.items()}
    cells = [[row.get(key) if isinstance(row.get(key), (str, type(None))) or factor == 1 else row[key] * factor
              for key, (_, factor) in headers.items()] for row in rows if where(row)]
    if not cells:
        raise LookupError(f"no row of {subject!r} is left of {len(rows)}; choose other ones with `where`")
    return Table([header for header, _ in headers.values()], cells, source[0].upper() + source[1:] + ".")


def recorded(subject: str, columns: tuple[str, ...] = (), folder: Path = RESULTS) -> str:
    """What the results files of GPUs say under the key `subject`, one paragraph a file; a plain sentence when none does.

    columns: of each row only these, where it has them; none named means all.
    """
    told = []
    for where, rows in recorded_rows(subject, folder):
        lines = [f"{where}:"]
        for row in rows:
            if isinstance(row, dict):
                named = [name for name in columns if name in row] or list(row)
                cells = [f"{name} {_short(row[name])}" for name in named]
            else:
                cells = [_short(row)]
            lines.append("  " + ", ".join(cells))
        told.append("\n".join(lines))
    return "\n\n".join(told) or f"no recorded GPU run of {subject!r} is in the repository yet"


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
