"""The table of contents: each chapter's question, how long it takes, and its exercises, read from the notebooks themselves."""

import importlib
import inspect
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
QUESTION = re.compile(r"\*\*([^*]+\?)\*\*")
SERVED = re.compile(r"\.(?:serve|speak)_with\(")  # the cell below an exercise
WORDS_PER_MINUTE = 180
SECONDS_PER_LINE = 4  # of code that is read
MINUTES_PER_EXERCISE = 12


@dataclass(frozen=True)
class Exercise:
    """A check of a chapter. name: of the function that checks; answer: of the function or class it is handed."""

    name: str
    title: str
    answer: str


@dataclass(frozen=True)
class Chapter:
    """A notebook of the course. number: "00" to "17", or a letter for an appendix."""

    path: Path

    @property
    def number(self) -> str:
        return self.path.stem.split("_")[0]

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        return cells

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """The sources of its cells, by kind: "markdown" and "code"."""
        kinds: dict[str, list[str]] = {"markdown": [], "code": []}
        for cell in self.cells:
            kinds.setdefault(cell["cell_type"], []).append("".join(cell["source"]))
        return kinds

    @property
    def title(self) -> str:
        """Without its number."""
        first = self.sources["markdown"][0].splitlines()[0]
        return first.removeprefix("# ").partition("·")[2].strip() or first.removeprefix("# ")

    @property
    def question(self) -> str:
        """The first bold question; empty for a chapter that asks none."""
        found = QUESTION.search("\n".join(self.sources["markdown"][:2]))
        words = " ".join(found[1].split()) if found else ""
        return words[:1].upper() + words[1:]  # it may be the end of a longer sentence

    @property
    def minutes(self) -> int:
        """To read it and run its cells, without the exercises; rounded to five."""
        words = sum(len(text.split()) for text in self.sources["markdown"])
        lines = sum(len(text.splitlines()) for text in self.sources["code"])
        return max(5, 5 * round((words / WORDS_PER_MINUTE + lines * SECONDS_PER_LINE / 60) / 5))

    @property
    def module_name(self) -> str | None:
        """Of its exercises, in the folder `exercises`; None where it has none."""
        name = "museum" if self.number == "A" else f"ch{self.number}"
        return name if (HERE / "exercises" / f"{name}.py").is_file() else None

    @property
    def serves(self) -> bool:
        """Whether the real engine serves tokens with what its reader has written."""
        code = "\n".join(text for text in self.sources["code"] if "NotImplementedError" in text or "check_" in text)
        return bool(SERVED.search(code)) or any(exercise.title.endswith("that serves") for exercise in self.exercises)

    @cached_property
    def exercises(self) -> list[Exercise]:
        """In the order of the chapter. Imports the module of its checks, and so the engine."""
        if self.module_name is None:
            return []
        module = importlib.import_module(f"chapters.exercises.{self.module_name}")
        found = []
        for name, check in vars(module).items():
            if name.startswith("check_") and hasattr(check, "exercise"):
                found.append(Exercise(name, check.exercise, next(iter(inspect.signature(check).parameters))))
        text = "\n".join(self.sources["code"])
        return sorted((one for one in found if f"{one.name}(" in text), key=lambda one: text.index(f"{one.name}("))


def chapters(folder: Path = HERE) -> list[Chapter]:
    """Every chapter, in order; appendices last."""
    return [Chapter(path) for path in sorted(folder.glob("*.ipynb"))]


def chapter_of(number: str, folder: Path = HERE) -> Chapter:
    """The chapter of a number ("4", "04", "a"). Raises LookupError, naming those there are."""
    wanted = number.upper().zfill(2) if number.isdigit() else number.upper()
    found = [chapter for chapter in chapters(folder) if chapter.number == wanted]
    if not found:
        raise LookupError(f"no chapter {number!r}; there are {', '.join(chapter.number for chapter in chapters(folder))}")
    return found[0]
