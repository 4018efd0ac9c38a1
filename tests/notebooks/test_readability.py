"""Every chapter keeps to the course's measure: a figure beyond its limit fails with the figure, the limit and the remedy.

prose   words of the markdown cells up to "In vLLM and SGLang this is …", the recap and the ten questions, which are looked up
        rather than read; without headings, tables, fenced code and HTML tags
line    of a code cell, neither empty nor a comment only
screen  45 lines of open code or printed text (a cell's frame counts as two), 38 lines of prose at 12 words (a paragraph break
        as two); a picture fills 0.6 of one
picture an output that is an image or an explorer
"""

import re
from pathlib import Path
from statistics import median

import nbformat
import pytest

CHAPTERS = sorted((Path(__file__).parents[2] / "chapters").glob("[0-9]*.ipynb"))
LOOKED_UP = re.compile(r"## (In vLLM|Recap|Ten short)")


def prose(markdown: list[str]) -> list[int]:
    """Words in each part of the running text, a part being a cell or what a heading begins in it."""
    counts, reading = [], True
    for part in (part for text in markdown for part in re.split(r"(?m)^(?=## )", text)):
        reading = not LOOKED_UP.match(part) if part.startswith("## ") else reading
        text = re.sub(r"(?ms)^```.*?^```|^[|#].*?$|<[^>]+>", "", part)
        counts += [len(text.split())] if reading else []
    return counts


def measure(notebook) -> dict[str, float]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    words = prose([cell.source for cell in notebook.cells if cell.cell_type == "markdown"])
    lines = [sum(not line.strip().startswith("#") for line in cell.source.splitlines() if line.strip()) for cell in code]
    outputs = [output for cell in code for output in cell.outputs]
    printed = sum(len(output.text.splitlines()) for output in outputs if output.get("name") == "stdout")
    pictures = sum(any(kind.startswith("image/") or "explorer" in kind for kind in o.get("data", {})) for o in outputs)
    open_cells = [cell for cell in code if not cell.metadata.get("jupyter", {}).get("source_hidden")]
    lines_open = sum(len(cell.source.splitlines()) + 2 for cell in open_cells)
    screens = (lines_open + printed) / 45 + sum(n / 12 + 2 for n in words) / 38
    return {"code cells": len(code), "median lines of a code cell": median(lines), "lines of the longest code cell": max(lines),
            "words of prose per line of code": sum(words) / sum(lines),
            "screens a picture": (screens + 0.6 * pictures) / max(pictures, 1)}


LIMITS = {  # COURSE.md's, the last with the little that counting screens by lines is off by
    "code cells": (30, 64, "split a cell that does two things, or show what prose only tells; above: the chapter is two"),
    "median lines of a code cell": (1, 6, "split cells where a thought ends"),
    "lines of the longest code cell": (1, 40, "split it, or import what is not the subject"),
    "words of prose per line of code": (5, 20, "let code show what prose tells; below: say what the code is for"),
    "screens a picture": (0, 2.5, "draw the chapter's own objects where two screens go by without a picture"),
}


# The anatomy of a chapter's end; each exercise has its task in words above the cell to fill in.
EXERCISES = ("## Exercises", "### Warm-up", "### Core", "### Stretch")
SECTIONS = (*EXERCISES, "## In vLLM", "## Recap", "## Ten short questions")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_all_its_sections(chapter):
    cells = nbformat.read(chapter, 4).cells
    headings = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines() if line[:1] == "#"]
    places = [next((i for i, line in enumerate(headings) if line.startswith(section)), None) for section in SECTIONS]
    missing = [section for section, place in zip(SECTIONS, places, strict=True) if place is None]
    assert not missing, f"{chapter.name} has no section {', '.join(missing)}: was a cell lost?"
    assert places[:len(EXERCISES)] == sorted(places)[:len(EXERCISES)], [headings[place] for place in places]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_measure(chapter):
    figures = measure(nbformat.read(chapter, 4))
    missed = [f"{name}: {figures[name]:.1f}, wanted {low} to {high}; {remedy}"
              for name, (low, high, remedy) in LIMITS.items() if not low <= figures[name] <= high]
    if missed:
        pytest.fail("\n".join([chapter.name, *missed]), pytrace=False)


COLUMNS = 90  # of code: what fits JupyterLab and the book on a small screen


def screens(notebook) -> list[str]:
    """What a page of the course must not do to its reader."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    problems = [f"{len(line)} columns of code, at most {COLUMNS}: {line.strip()[:60]} …"
                for cell in code for line in cell.source.splitlines() if len(line) > COLUMNS]
    for cell in code:
        if "print(inspect.getsource" in cell.source:
            problems.append("source printed in one colour: show viz.listing(thing), highlighted and with its file")
        if "print(recorded(" in cell.source:
            problems.append("a recorded run printed as raw keys: recorded_table(subject, {key: 'what (unit)'}) has units")
        for shown in (output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {})):
            long = [line for line in shown.splitlines() if len(line) > COLUMNS] if "\n```python\n" in shown else []
            problems += [f"{len(line)} columns in a listing, at most {COLUMNS}: run the chapter anew ({line.strip()[:50]} …)"
                         for line in long if not line.startswith("[`")]
        imports = [line for line in cell.source.splitlines() if line.startswith(("import ", "from "))]
        if len(imports) > 3 and not cell.metadata.get("jupyter", {}).get("source_hidden"):
            problems.append(f"{len(imports)} import lines stand open: set the cell's metadata jupyter.source_hidden")
    opened = [cell for cell in notebook.cells[:5] if cell.cell_type == "markdown"
              or not cell.metadata.get("jupyter", {}).get("source_hidden")
              or any("image/png" in output.get("data", {}) for output in cell.outputs)]
    pictures = [any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) for cell in opened]
    if "**" not in notebook.cells[0].source or "?" not in notebook.cells[0].source:
        problems.append("the first cell asks no question (bold, with a question mark)")
    if True not in pictures[:4]:
        problems.append("the first screen has no picture: fold what is needed to draw it (jupyter.source_hidden)")
    return problems


def spoiled(notebook) -> list[str]:
    """Predictions that the page answers before its reader can: by a saved output that is not folded, or in the text behind it.

    The convention: below "### Predict first" the first cell with outputs has the metadata jupyter.outputs_hidden, which
    JupyterLab takes off when the cell is run, and the book folds; what it prints begins with a heading, since JupyterLab shows
    the first line of what is folded; what the text behind it says of the answer stands in a <details> of its own.
    """
    problems = []
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown" or "### Predict first" not in cell.source:
            continue
        behind = notebook.cells[place + 1:]
        answer = next((i for i, other in enumerate(behind) if other.get("outputs")), None)
        if answer is None:
            problems.append(f"cell {place}: nothing answers this prediction")
            continue
        if not behind[answer].metadata.get("jupyter", {}).get("outputs_hidden"):
            problems.append(f"cell {place + 1 + answer}: fold the saved answer (metadata jupyter.outputs_hidden)")
        first = behind[answer].outputs[0]
        if first.output_type == "stream" and not first.text.lstrip().split("\n")[0].rstrip().endswith(":"):
            problems.append(f"cell {place + 1 + answer}: JupyterLab shows the first line of a folded output; print a heading "
                            "that ends in a colon before the answer")
        text = next((other.source for other in behind[answer + 1:] if other.cell_type == "markdown"), "")
        if not text.startswith(("<details>", "#")):
            problems.append(f"the text behind cell {place + 1 + answer} begins with the answer: put it in <details>")
    return problems


FOLDED = CHAPTERS


@pytest.mark.parametrize("chapter", FOLDED, ids=lambda path: path.stem)
def test_a_prediction_is_not_answered_on_the_page(chapter):
    problems = spoiled(nbformat.read(chapter, 4))
    if problems:
        pytest.fail("\n".join([chapter.name, *problems]), pytrace=False)


@pytest.mark.parametrize("chapter", sorted(CHAPTERS[0].parent.glob("[0-9A]*.ipynb")), ids=lambda path: path.stem)
def test_a_page_shows_its_question_and_no_machinery(chapter):
    problems = screens(nbformat.read(chapter, 4))
    if problems:
        pytest.fail("\n".join([chapter.name, *problems]), pytrace=False)
