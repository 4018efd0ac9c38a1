"""The course as a web site: every chapter as it was committed, with explorers that move and no kernel behind them.

    python -m chapters.book.build                  # into build/book; make book does the same
    python -m chapters.book.build --only 04        # some chapters, while writing

Nothing is run and nothing is fetched. A notebook's output holds an explorer's data beside its picture; here the picture
gives way to the explorer, mounted by the same script as in a report page.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
from ipywidgets.embed import embed_data
from sphinx.cmd.build import build_main

from chapters.book import reference
from chapters.book.project import readme_page, repository
from chapters.contents import Chapter
from visualizations.both_modes import SAVED_FIGURE, html
from visualizations.explorers.base import HERE as EXPLORERS
from visualizations.explorers.base import SAVED, json_script, reopened
from visualizations.figures.journey import plot_journey

BOOK = Path(__file__).parent
CHAPTERS = BOOK.parent
OUT = CHAPTERS.parent / "build" / "book"

INDEX = """\
# How an LLM inference engine works

**You type a question, and the answer arrives a word at a time. What happens in between?** This course takes an inference
engine of the vLLM kind apart and builds it again, a few lines at a time. Each chapter ends with the finished module that
serves real models.

{map}

It is for readers who know some Python and have met a neural network. No GPU is needed: everything you see was shown by a
notebook that ran on a laptop's CPU, beside measurements that were recorded on an H200. The pictures with a player below them
move here, too: click into one, then drag, or use the arrow keys.

To run the chapters yourself, clone {repository} and type `make lab`; the [README](readme.md) says how the engine is installed,
served, measured and changed. `python -m chapters` says what you have solved and what comes next. When the exercises of the
block manager, the scheduler, the sampler and the drafter are solved, `python -m chapters capstone` puts yours into one engine
and serves with it.

## The chapters

::::{{container}} contents
{table}
::::

```{{toctree}}
:maxdepth: 1
:hidden:

{pages}
```

```{{toctree}}
:maxdepth: 1
:hidden:

readme
reference/index
```

The [reference](reference/index.md) holds every public class and function, and the commands with their help.
"""

# A link from a chapter into the source: JupyterLab opens the file, the book has a page of it, where the reference needs one.
SOURCE_LINK = re.compile(r"\[([^\]]+)\]\(\.\./(\w+(?:/\w+)*)\.py\)")


# "chapter 04", and "chapters 04 and 05", outside of code and of links.
CHAPTER = re.compile(r"(?<=[Cc]hapter )(\d\d|[AB])\b|(?<=[Cc]hapters )(\d\d)( and | to |, )(\d\d)\b")
APART = re.compile(r"(```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)|<[^>]+>)", re.DOTALL)


def with_chapter_links(notebook, chapters: list[Path]):
    """Make the numbers of chapters links to them, where the book has them."""
    files = {chapter.stem.split("_")[0]: chapter.name for chapter in chapters}

    def link(number: str) -> str:
        return f"[{number}]({files[number]})" if number in files else number

    def linked(found: re.Match[str]) -> str:
        return link(found[1]) if found[1] else f"{link(found[2])}{found[3]}{link(found[4])}"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts = APART.split(cell.source)
            parts[::2] = [CHAPTER.sub(linked, text) for text in parts[::2]]
            cell.source = "".join(parts)
    return notebook


def contents_table(chapters: list[Path]) -> str:
    """A row for each chapter: its number and title as a link, its question, and how long it takes."""
    rows = ["| chapter | its question | minutes |", "|---|---|--:|"]
    for chapter in map(Chapter, chapters):
        rows.append(f"| [{chapter.number} · {chapter.title}]({chapter.path.name}) | {chapter.question} | {chapter.minutes} |")
    return "\n".join(rows)


def course_map() -> str:
    """The picture of the course: the rooms that a prompt goes through."""
    saved = plot_journey()._repr_mimebundle_()
    return " ".join(saved["text/html"].split())  # on one line: an empty one, as in its alt text, would end the HTML in Markdown


def with_figures(notebook):
    """Put both forms of each figure, for light pages and for dark ones, where the light one stands."""
    for output in (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs):
        if SAVED_FIGURE in output.get("data", {}):
            saved = output.data[SAVED_FIGURE]
            output.data = nbformat.from_dict({"text/html": html(output.data["image/png"], saved["dark"], saved["texts"])})
    return notebook


def with_source_links(notebook, modules: set[str]):
    """Lead links into the source to the book's own pages of it; where it has none, the name alone stays."""

    def linked(found: re.Match[str]) -> str:
        name, path = found[1].strip("`"), found[2]
        return f'<a href="_modules/{path}.html"><code>{name}</code></a>' if path.replace("/", ".") in modules else found[1]

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOURCE_LINK.sub(linked, cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = SOURCE_LINK.sub(linked, output.data["text/markdown"])
    return notebook


def with_folds(notebook):
    """What JupyterLab folds (imports, an engine's set-up, the answer to a prediction) is folded here, too."""
    for cell in notebook.cells:
        for part, tag in (("source_hidden", "hide-input"), ("outputs_hidden", "hide-output")):
            if cell.metadata.get("jupyter", {}).get(part):
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), tag]
    return notebook


def with_explorers(notebook):
    """Put the explorers of a notebook, in place, where their pictures stand. Their state goes to the end of the page."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
               if SAVED in output.get("data", {})]  # fmt: skip
    if not outputs:
        return notebook
    explorers = [reopened(output.data[SAVED]) for output in outputs]
    data = embed_data(explorers, drop_defaults=False)
    for output, view in zip(outputs, data["view_specs"], strict=True):
        output.data = nbformat.from_dict({"text/html": json_script("view", view)})
    state = json_script("state", data["manager_state"])
    host = (EXPLORERS / "host.js").read_text(encoding="utf-8")
    script = f"<script>{host}</script>"
    notebook.cells.append(nbformat.v4.new_markdown_cell(f"{state}\n\n{script}"))
    return notebook


def lay_out(chapters: list[Path], pages: Path) -> None:
    """Write the pages that Sphinx reads."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(BOOK / "static", pages / "static")
    shutil.copy(BOOK / "conf.py", pages)
    modules = reference.modules()
    for chapter in chapters:
        page = with_chapter_links(with_source_links(with_figures(nbformat.read(chapter, 4)), modules), chapters)
        page = with_explorers(with_folds(page))
        (pages / chapter.name).write_text(json.dumps(page), encoding="utf-8")
    reference.write_pages(pages / "reference")
    (pages / "readme.md").write_text(readme_page("README.md", chapters), encoding="utf-8")
    chinese = "---\norphan: true\n---\n\n" + readme_page("README.zh-CN.md", chapters)
    (pages / "readme-zh.md").write_text(chinese, encoding="utf-8")
    index = INDEX.format(map=course_map(), repository=repository(), table=contents_table(chapters),
                         pages="\n".join(c.stem for c in chapters))
    (pages / "index.md").write_text(index, encoding="utf-8")


def build(chapters: list[Path], out: Path) -> int:
    """Build the site of `chapters` into `out`/html; returns Sphinx's exit status. A warning is an error."""
    pages = out / "pages"
    lay_out(chapters, pages)
    return build_main(["-q", "-W", "--keep-going", "-E", "-d", str(out / "doctrees"), str(pages), str(out / "html")])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m chapters.book.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", nargs="+", metavar="NUMBER", help="beginnings of the chapters' names, such as 04")
    options = parser.parse_args(arguments)
    chapters = sorted(CHAPTERS.glob("*.ipynb"))
    if options.only:
        chapters = [chapter for chapter in chapters if chapter.name.startswith(tuple(options.only))]
        if not chapters:
            parser.error(f"--only {' '.join(options.only)}: no chapter's name begins so; they are numbered 00 to 17, A and B")
    status = build(chapters, options.out)
    print(f"{options.out / 'html' / 'index.html'}" if status == 0 else "the book could not be built; see above")
    return status


if __name__ == "__main__":
    sys.exit(main())
