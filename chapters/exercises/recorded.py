"""Measurements that a GPU made and the repository keeps, shown with the machine, the date and the commit they come from."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def recorded(subject: str, folder: Path = RESULTS) -> str:
    """What the results files of GPUs say under the key `subject`, one paragraph a file; a plain sentence when none does."""
    told = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        if not isinstance(result, dict) or subject not in result or "device" not in result:
            continue
        date, commit = result.get("date", "no date"), result.get("commit", "not noted")
        lines = [f"recorded on {result['device']}, {date}, commit {commit}:"]
        rows = result[subject]
        for row in rows if isinstance(rows, list) else [rows]:
            cells = [f"{k} {_short(v)}" for k, v in row.items()] if isinstance(row, dict) else [_short(row)]
            lines.append("  " + ", ".join(cells))
        told.append("\n".join(lines))
    return "\n\n".join(told) or f"no recorded GPU run of {subject!r} is in the repository yet"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
