"""python -m chapters: what is solved and what comes next, a check run from the terminal, and the capstone."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from chapters import __main__ as command
from chapters.answers import definitions
from chapters.contents import chapter_of, chapters
from chapters.exercises.capstone import PARTS, serve
from chapters.exercises.ch15 import REPEAT
from chapters.exercises.progress import VARIABLE, Progress
from chapters.exercises.solutions.ch02 import MyBlocks
from chapters.exercises.solutions.ch10 import MySampler
from chapters.exercises.verdict import Verdict
from nanovllm.__main__ import REQUESTS
from nanovllm.engine.drafts import Drafter
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
        assert chapter.question.endswith("?"), chapter.path.name
        if chapter.number != "B":
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
    assert capsys.readouterr().out.startswith("passed · slots") and list(progress.solved()) == ["ch02.check_slot_runs"]
    assert command.main(["--notebooks", str(tmp_path / "mine"), "check", "02"]) == 0
    assert len(progress.solved()) == 3
    capsys.readouterr()
    command.main([])
    assert "02  ●●●" in capsys.readouterr().out
    assert command.main(["forget"]) == 0 and progress.solved() == {}


@pytest.mark.parametrize("arguments", [[], ["check", "02"], ["check", "B"], ["capstone"], ["forget"]], ids=" ".join)
def test_a_reader_who_stops_reading_ends_it_quietly(progress, arguments):
    """python -m chapters | head: whatever the command prints, no traceback follows it."""
    read, write = os.pipe()
    os.close(read)  # before the first line is printed, so that the first write fails
    command_line = [sys.executable, "-m", "chapters", *arguments]
    done = subprocess.run(command_line, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, text=True, encoding="utf-8")
    os.close(write)
    assert done.stderr == "" and done.returncode == command.NO_READER


def test_an_answer_may_have_constants_and_helpers_beside_it(progress, tmp_path):
    """A cell's own constants and functions are taken with the answer; what a cell computes when it runs is not."""
    chapter = chapter_of("02")
    notebook = json.loads(chapter.path.read_text(encoding="utf-8"))
    [cell] = [cell for cell in notebook["cells"] if "def slot_runs(" in "".join(cell["source"])]
    cell["source"] = ("FIRST, LIST = 2 - 2, []\nnever = print('run')\n\ndef slot(table, i, size):\n"
                      "    return table[i // size] * size + i % size + FIRST\n\n"
                      "def slot_runs(block_table, start, end, block_size):\n    runs = []\n"
                      "    for i in range(start, end):\n        at = slot(block_table, i, block_size)\n"
                      "        if runs and at == sum(runs[-1]):\n            runs[-1] = (runs[-1][0], runs[-1][1] + 1)\n"
                      "        else:\n            runs.append((at, 1))\n    return runs")
    (tmp_path / chapter.path.name).write_text(json.dumps(notebook), encoding="utf-8")
    assert command.main(["--notebooks", str(tmp_path), "check", "02", "slots"]) == 0
    taken = definitions(chapter_of("02", tmp_path))
    assert "FIRST, LIST = 2 - 2, []" in taken and "print('run')" not in taken


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
    out = capsys.readouterr().out
    assert "chapter 15, Repeats: not yet" in out and "open 15" in out and str(mine) in out and out.count(": passed\n") == 3
    assert "capstone.serve" not in progress.solved()
    solved_copy("15", mine)
    assert command.main(["--notebooks", str(mine), "capstone"]) == 0
    out = capsys.readouterr().out
    assert out.count("Every text is the finished engine's") == 1 and "capstone.serve" in progress.solved()
    assert all(out.count(f"\n{request}\n  ") == 1 for request in (*REQUESTS, REPEAT))
    saved = re.search(r"(\d+) tokens in \d+ steps; your drafter guessed (\d+) of them, and (\d+) were right", out)
    assert saved and int(saved[1]) > int(saved[2]) > int(saved[3]) >= 5  # the drafter is of use in the end
    assert all(f"> {request}\n" in out for request in REQUESTS) and "decode tokens" in out  # and the demo ran
    command.main([])
    assert re.search(r"● +the capstone", capsys.readouterr().out)


def capstone_parts():
    return {name: getattr(importlib.import_module(f"chapters.exercises.solutions.ch{number}"), name)
            for name, number in PARTS.items()}


@pytest.mark.timeout(300)
def test_the_capstone_is_one_engine_and_each_part_of_it_is_the_readers():
    """A part that does something else than its solution is noticed: each of the four decides in the one engine."""
    right = capstone_parts()
    asked = dict.fromkeys(right, 0)

    def counting(name, method):
        def counted(self, *args):
            asked[name] += 1
            return getattr(super(parts[name], self), method)(*args)
        return type(name, (right[name],), {method: counted})

    parts = {name: counting(name, method) for name, method in (
        ("MyBlocks", "shrink"), ("MyScheduler", "plan"), ("MySampler", "__call__"), ("Repeats", "propose"))}
    assert len(list(serve(parts, lambda text: None))) == len(REQUESTS) + 1
    assert all(asked.values()), asked


class Unlike(MySampler):
    def __call__(self, logits, batch):
        return logits.topk(2).indices[:, 1]


class Mute(Drafter):
    def propose(self, sequences, limits):
        return [[] for _ in sequences]


class Leaks(MyBlocks):
    def shrink(self, seq, num_tokens):
        del seq.block_table[-(-num_tokens // self.block_size):]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name, wrong, told", [
    ("MySampler", Unlike, "your engine says"), ("Repeats", Mute, "none of 0 guesses"), ("MyBlocks", Leaks, "your class says")])
def test_a_wrong_part_fails_the_capstone(name, wrong, told):
    with pytest.raises(RuntimeError, match=told):
        list(serve(capstone_parts() | {name: wrong}, lambda text: None))


def test_a_capstone_that_says_something_else_is_told_what(progress, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("chapters.answers.verdicts", lambda chapter, only: {only: Verdict("made up", True, "")})
    own = {"MyScheduler": None, "MyBlocks": None, "MySampler": None, "Repeats": None}
    monkeypatch.setattr("chapters.answers.module_of", lambda chapter: SimpleNamespace(**own))

    def serve(parts):
        assert parts == own
        raise RuntimeError("your engine says 'a', the finished one 'b'")

    monkeypatch.setattr("chapters.exercises.capstone.serve", serve)
    assert command.main(["capstone"]) == 1
    assert "not yet · your engine says 'a'" in capsys.readouterr().out and "capstone.serve" not in progress.solved()


def test_the_place_of_the_file_is_the_users_own(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    file = Progress().file
    assert file.name == "solved.json" and not file.is_relative_to(ROOT)
