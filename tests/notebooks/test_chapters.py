"""Every chapter runs from top to bottom, and what is committed under its cells is what it shows today."""

from pathlib import Path

import pytest

from tests.notebooks import nbtool

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))


def test_the_course_has_its_first_chapter():
    assert (ROOT / "chapters" / "00_life_of_a_prompt.ipynb") in CHAPTERS


@pytest.mark.notebook
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_and_its_outputs_are_current(chapter):
    problems = nbtool.check(chapter)
    if problems:
        pytest.fail("\n\n".join([f"{chapter.name} (after a wanted change: make notebooks)", *problems]), pytrace=False)
