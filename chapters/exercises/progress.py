"""What a reader has solved: a small file of their own, outside the repository, so that a new version of it loses nothing."""

import json
import os
from datetime import date
from pathlib import Path

from platformdirs import user_state_path

VARIABLE = "NANOVLLM_COURSE_STATE"  # another file than the usual one, for instance on a shared machine


def state_file() -> Path:
    """Where the notes are: under the user's state directory, as the operating system has it."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else user_state_path("nano-vllm-course", appauthor=False) / "solved.json"


class Progress:
    """Which exercises were solved, and when. Owns the file; reads it anew each time, as notebooks write it too."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or state_file()

    def solved(self) -> dict[str, str]:
        """{"ch04.check_scheduler": "2026-11-27", ...}; empty without a file, or with one that cannot be read."""
        try:
            notes = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(k): str(v) for k, v in notes.items()} if isinstance(notes, dict) else {}

    def note(self, module: str, check: str, day: date | None = None) -> None:
        """Write down that an exercise was solved; the first day stays. A folder that cannot be written to raises OSError."""
        notes = self.solved()
        notes.setdefault(f"{module}.{check}", (day or date.today()).isoformat())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        new.replace(self.file)  # whole or not at all

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)
