"""The book's reference says what the program says."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nanovllm
from chapters.book import reference
from chapters.book.docstrings import to_rst

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


def test_docstrings_become_what_sphinx_reads():
    lines = ["Runs *all* of `it`.", "", "a, b: two things. c: a third,", "    which goes on.", "", "    code(1)", "",
             "    more()", "", "Raises ValueError: for `x`s."]
    assert to_rst(lines) == [
        r"Runs \*all\* of ``it``.", "",
        "``a, b``", "    two things.", "", "``c``", "    a third, which goes on.", "",
        "::", "", "    code(1)", "", "    more()", "",
        r"Raises ValueError: for ``x``\ s.", ""]
