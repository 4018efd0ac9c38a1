"""The book's reference says what the program says."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nanovllm
from chapters.book import readme, reference
from chapters.book.docstrings import to_rst
from chapters.contents import chapters

ROOT = Path(__file__).parents[1]
NAMES = [name for _, _, names in reference.PAGES.values() for name in names]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    reference.write_pages(folder)
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}


def test_every_exported_name_is_on_the_page_and_has_a_docstring(pages):
    assert set(re.findall(r"auto\w+:: nanovllm\.(\w+)", pages["api"])) == set(nanovllm.__all__)
    for name in NAMES:
        assert inspect.getdoc(reference.resolved(name)), f"{name} has no docstring"


def test_public_methods_have_docstrings_or_explain_themselves():
    """A method without a docstring is left out of the reference: it must be one that a base class explains, or a property
    whose name is its explanation."""
    for name in NAMES:
        thing = reference.resolved(name)
        if not isinstance(thing, type) or not name.startswith("nanovllm."):
            continue
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and inspect.isfunction(value) and len(inspect.getsource(value).splitlines()) > 4:
                assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute} has no docstring"


@pytest.mark.parametrize("command", [*(("nanovllm", *command) for command in reference.COMMANDS),
                                     *(("benchmarks", *command) for command in reference.BENCHMARKS)], ids=" ".join)
def test_the_commands_page_shows_the_help_that_the_program_prints(pages, command):
    run = subprocess.run([sys.executable, "-m", *command, "--help"], cwd=ROOT, capture_output=True, text=True,
                         env=os.environ | {"COLUMNS": "100"}, check=True, encoding="utf-8")
    assert run.stdout in pages["commands"] and "--" in run.stdout


@pytest.mark.parametrize("file", ["README.md", "README.zh-CN.md"])
def test_every_command_and_option_that_the_readme_names_exists(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    helps = {command: reference.help_of(*command) for command in reference.COMMANDS}
    helps |= {("benchmarks", *command): reference.help_of(*command, program="benchmarks") for command in reference.BENCHMARKS}
    whole = "".join(helps.values())
    for line in re.findall(r"python -m (benchmarks serve.*)", text):
        for option in re.findall(r"--[a-z][a-z-]+", line):
            assert option in helps["benchmarks", "serve"], f"{file} gives benchmarks serve the option {option}"
    for line in re.findall(r"python -m nanovllm (.*)", text):
        command = line.split()[0].strip("`")
        assert (command,) in helps, f"{file} names the command {command!r}"
        for option in re.findall(r"--[a-z][a-z-]+", line.split("#")[0]):
            assert option in helps[(command,)], f"{file} gives {command} the option {option}"
    serving = text[text.index("python -m nanovllm serve"):].split("\n## ")[0]
    for option in re.findall(r"`(--[a-z][a-z-]+)`", serving):
        assert option in whole, f"{file} names the option {option}"


MINUTES_OFF = 5  # one step of an estimate: an edited paragraph need not change the README


@pytest.mark.parametrize("file", readme.FILES)
def test_the_readme_lists_the_chapters_as_they_are(file):
    """Numbers, paths, titles and questions; after a change: python -m chapters.book.readme."""
    text = (ROOT / file).read_text(encoding="utf-8")
    listed, true = readme.rows(text), readme.rows(readme.updated(text, file == "README.md"))
    for number, row in listed.items():
        assert {**row, "minutes": None} == {**true[number], "minutes": None}, "run python -m chapters.book.readme"
        assert abs(int(row["minutes"]) - int(true[number]["minutes"])) <= MINUTES_OFF, "run python -m chapters.book.readme"


def test_a_readme_without_a_chapter_is_refused():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="the table lists 00, 01"):
        readme.updated(re.sub(r"\| 05 \|.*\n", "", text), english=True)
    other = text.replace("[Scheduler](", "[Planner](")
    assert other != text and readme.updated(other, english=True) == readme.updated(text, english=True)


@pytest.mark.parametrize(("file", "between"), [("README.md", r"In chapters ([\d,toand ]+) what you wrote then serves"),
                                               ("README.zh-CN.md", r"在第 ([\d至、和 ]+) 章，你写的代码随后")])
def test_the_readme_says_in_which_chapters_the_readers_code_serves(file, between):
    [told] = re.findall(between, (ROOT / file).read_text(encoding="utf-8"))
    numbers = set(re.findall(r"\d\d", told))
    for first, last in re.findall(r"(\d\d) (?:to|至) (\d\d)", told):
        numbers |= {f"{n:02d}" for n in range(int(first), int(last) + 1)}
    assert numbers == {chapter.number for chapter in chapters() if chapter.serves}


@pytest.mark.parametrize("file", readme.FILES)
def test_the_readme_tells_of_the_readers_command(file):
    """Each subcommand that it names is one, and the capstone's chapters are those of its parts."""
    from chapters.exercises.capstone import PARTS

    text = (ROOT / file).read_text(encoding="utf-8")
    helped = subprocess.run([sys.executable, "-m", "chapters", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
                            encoding="utf-8").stdout
    named = re.findall(r"python -m chapters ([a-z]+)", text)
    assert set(named) == {"open", "check", "capstone"} and all(f"python -m chapters {name}" in helped for name in named)
    *first, last = sorted(PARTS.values())
    english, chinese = f"{', '.join(first)} and {last} are solved", f"第 {'、'.join(first)} 和 {last} 章"
    assert (english if file == "README.md" else chinese) in text


def test_docstrings_become_what_sphinx_reads():
    lines = ["Runs *all* of `it`.", "", "a, b: two things. c: a third,", "    which goes on.", "", "    code(1)", "",
             "    more()", "", "Raises ValueError: for `x`s."]
    assert to_rst(lines) == [
        r"Runs \*all\* of ``it``.", "",
        "``a, b``", "    two things.", "", "``c``", "    a third, which goes on.", "",
        "::", "", "    code(1)", "", "    more()", "",
        r"Raises ValueError: for ``x``\ s.", ""]
