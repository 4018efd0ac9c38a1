"""python -m chapters: what is solved and what comes next, a check run from the terminal, and the capstone."""

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from chapters import __main__ as command
from chapters.contents import chapter_of, chapters
from chapters.exercises.progress import VARIABLE, Progress
from tests.exercises.test_exercises import ROOT


@pytest.fixture
def progress(tmp_path, monkeypatch):
    """A reader's file that no real one is touched for."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "state" / "solved.json"))
    return Progress()


def solved_copy(number: str, folder: Path) -> None:
    """A chapter as a reader leaves it who wrote every solution into its cells."""
    chapter = chapter_of(number)
    notebook = json.loads(chapter.path.read_text(encoding="utf-8"))
    solutions = importlib.import_module(f"chapters.exercises.solutions.{chapter.module_name}")
    for cell in notebook["cells"]:
        for exercise in chapter.exercises:
            text = "".join(cell["source"])
            task = cell["cell_type"] == "code" and "NotImplementedError" in text
            if task and re.search(rf"(def|class) {exercise.answer}\b", text):
                own = [thing for thing in vars(solutions).values() if getattr(thing, "__module__", "") == solutions.__name__]
                imports = [line for line in inspect.getsource(solutions).splitlines() if line.startswith(("import ", "from "))]
                imports = [line.replace("from ..", "from exercises.") for line in imports]
                cell["source"] = "\n".join([*imports, *map(inspect.getsource, own)])
    folder.mkdir(exist_ok=True)
    (folder / chapter.path.name).write_text(json.dumps(notebook), encoding="utf-8")


def test_every_chapter_has_a_question_minutes_and_its_exercises():
    for chapter in chapters():
        assert chapter.title and 5 <= chapter.minutes <= 60
        if chapter.number != "B":
            assert chapter.question.endswith("?"), chapter.path.name
            assert len(chapter.exercises) == (11 if chapter.number == "A" else 3), chapter.path.name


def test_a_new_reader_begins_at_the_beginning(progress, capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    assert out.count("○○○\n") == 0 and "next: chapter 00" in out and str(progress.file) in out and "●" not in out


def test_a_check_in_the_terminal_is_that_of_the_notebook_and_is_noted(progress, tmp_path, capsys):
    assert command.main(["check", "2"]) == 1
    assert capsys.readouterr().out.count("still to be written") == 3 and progress.solved() == {}
    solved_copy("02", tmp_path / "mine")
    assert command.main(["--notebooks", str(tmp_path / "mine"), "check", "02", "slots"]) == 0
    assert capsys.readouterr().out.startswith("passed · slots") and list(progress.solved()) == ["ch02.check_slot_mapping"]
    assert command.main(["--notebooks", str(tmp_path / "mine"), "check", "02"]) == 0
    assert len(progress.solved()) == 3
    capsys.readouterr()
    command.main([])
    assert "02  ●●●" in capsys.readouterr().out
    assert command.main(["forget"]) == 0 and progress.solved() == {}


def test_what_is_not_there_is_named(progress, capsys):
    assert command.main(["check", "99"]) == 2 and "'99'" in capsys.readouterr().err
    assert command.main(["check", "04", "nonsense"]) == 2 and "share out a budget" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_no_file(progress):
    progress.file.parent.mkdir(parents=True)
    progress.file.write_text("{", encoding="utf-8")
    assert progress.solved() == {}
    progress.note("ch00", "check_next_step")
    assert list(progress.solved()) == ["ch00.check_next_step"]


@pytest.mark.timeout(300)
def test_the_capstone_serves_with_the_readers_own_parts(progress, tmp_path, capsys):
    mine = tmp_path / "mine"
    for number in ("02", "04", "10"):
        solved_copy(number, mine)
    (mine / chapter_of("15").path.name).write_text(chapter_of("15").path.read_text(encoding="utf-8"), encoding="utf-8")
    assert command.main(["--notebooks", str(mine), "capstone"]) == 1
    assert "Repeats of chapter 15" in capsys.readouterr().out
    solved_copy("15", mine)
    assert command.main(["--notebooks", str(mine), "capstone"]) == 0
    out = capsys.readouterr().out
    assert out.count("every text the finished engine's") == 2 and "capstone.serve" in progress.solved()


def test_the_place_of_the_file_is_the_users_own(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    file = Progress().file
    assert file.name == "solved.json" and not file.is_relative_to(ROOT)
