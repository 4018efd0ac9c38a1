"""The course's table in README.md and README.zh-CN.md: as the chapters themselves have it.

    python -m chapters.book.readme      # writes it anew, after a chapter got another question or another length

A row's title, question and minutes are the chapter's. What to read before it, and everything in Chinese but the minutes, is
written by hand and stays.
"""

import re
import sys
from pathlib import Path

from chapters.contents import Chapter, chapters

ROOT = Path(__file__).parents[2]
FILES = ("README.md", "README.zh-CN.md")
ROW = re.compile(r"^\| (?P<number>\d\d|[AB]) \| \[(?P<title>[^]]+)\]\((?P<path>[^)]+)\) \| (?P<question>[^|]*?) \| "
                 r"(?P<before>[^|]*?) ?\| (?P<minutes>\d+) \|$", re.MULTILINE)


def rows(text: str) -> dict[str, dict[str, str]]:
    """The table's rows by the chapter's number."""
    return {found["number"]: found.groupdict() for found in ROW.finditer(text)}


def updated(text: str, english: bool) -> str:
    """A README with the chapters' own words. Raises ValueError where a chapter has no row, or a row no chapter."""
    course = {chapter.number: chapter for chapter in chapters()}
    listed = list(rows(text))
    if listed != list(course):
        raise ValueError(f"the table lists {', '.join(listed)}; there are {', '.join(course)}: add or remove a row by hand")

    def row(found: re.Match[str]) -> str:
        chapter: Chapter = course[found["number"]]
        title, question = found.group("title", "question")
        if english:
            title, question = chapter.title, chapter.question or question
        return (f"| {chapter.number} | [{title}](chapters/{chapter.path.name}) | {question} | {found['before']} | "
                f"{chapter.minutes} |")

    return ROW.sub(row, text)


def main() -> int:
    for name in FILES:
        file = ROOT / name
        file.write_text(updated(file.read_text(encoding="utf-8"), name == "README.md"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
