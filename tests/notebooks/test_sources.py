"""What a chapter cites can be opened: papers, advisories and threads are links, and one work has one address."""

import re
from collections import defaultdict
from pathlib import Path

import nbformat
import pytest

CHAPTERS = sorted((Path(__file__).parents[2] / "chapters").glob("*.ipynb"))
LINK = re.compile(r"\[([^\]]+)\]\((https://[^)\s]+)\)")
# "Yu and others, 2022", "Yu et al. 2022", "Zhang and Sennrich, 2019".
CITED = re.compile(r"[A-Z]\w+(?: and (?:others|[A-Z]\w+)|,? et al\.),? \(?(?:19|20)\d\d")
TITLE = re.compile(r"(?<!\*)\*([^*]+)\*(?!\*)")
ADVISORY = re.compile(r"CVE-\d{4}-\d+|GHSA(?:-\w{4}){3}")
ON_PAPER = {"Statistical Theory of Extreme Values"}  # books without a page of their own


def markdown(chapter: Path) -> list[str]:
    """The lines of a chapter's text, each a paragraph."""
    cells = nbformat.read(chapter, 4).cells
    return [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_what_is_cited_is_linked(chapter):
    problems = []
    for line in markdown(chapter):
        links, bare = LINK.findall(line), LINK.sub("", line)
        if line.startswith("To read on"):
            problems += [f"no link: {title}" for title in TITLE.findall(bare) if title not in ON_PAPER]
        elif len(CITED.findall(line)) > len(links):
            problems.append(f"{len(CITED.findall(line))} works cited, {len(links)} linked: {line[:80]} …")
        problems += [f"no link: {name}" for name in ADVISORY.findall(bare)]
        if re.search(r"\b(?:issues?|pull requests?)\b[^.;:]*\b\d{2,}", bare):
            problems.append(f"a thread's number without a link: {line[:80]} …")
    assert problems == []


@pytest.mark.parametrize("chapter", [path for path in CHAPTERS if path.stem[0].isdigit()], ids=lambda path: path.stem)
def test_there_is_something_to_read_on(chapter):
    [further] = [line for line in markdown(chapter) if line.startswith("To read on: ")]
    assert LINK.search(further)


def test_one_work_has_one_address():
    """A mistyped number would send a reader to another paper; the same title elsewhere in the course gives it away."""
    addresses = defaultdict(set)
    for chapter in CHAPTERS:
        for text, address in LINK.findall("\n".join(markdown(chapter))):
            if text.startswith("*"):
                addresses[text.strip("*")].add(address)
            if "arxiv.org" in address:
                assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", address), address
            if "doi.org" in address:
                assert re.fullmatch(r"https://doi\.org/10\.\d{4}/[\d.]+", address), address
    assert len(addresses) > 30
    assert {title: found for title, found in addresses.items() if len(found) > 1} == {}
