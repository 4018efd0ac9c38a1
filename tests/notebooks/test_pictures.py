"""The pictures that a chapter was committed with: none is cut off at its edge, none is wider than a narrow page can show.

That what is written in them is what their code writes today, tests/notebooks/compare.py sees when a chapter is run. Here
nothing is run, so that pictures of cells whose numbers change (tag `volatile`) are looked at, too.
"""

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from visualizations import theme
from visualizations.both_modes import SAVED_FIGURE, png
from visualizations.explorers.base import SAVED

CHAPTERS = sorted((Path(__file__).parents[2] / "chapters").glob("*.ipynb"))
EDGE = 2  # pixels at each side that nothing but paper may touch; a word that is cut does
PAPER = 24  # of 255: what antialiasing may leave there
WIDEST = round(theme.WIDEST * 100) + 4  # pixels of a figure; at both_modes.READABLE of it, it fits a page of 700
WIDEST_STILL = 1000  # of an explorer, shown only where no JavaScript runs
# Timings from a quiet machine, drawn before figures were this narrow and broke their titles into lines: how many problems a
# chapter may have until such cells are run anew on a quiet machine.
TO_BE_MEASURED_ANEW: dict[str, int] = {}


def pictures(chapter: Path):
    """(cell, what it is, pixels) of each picture, a figure's dark twin included."""
    for place, cell in enumerate(nbformat.read(chapter, 4).cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = "explorer" if SAVED in data else "figure"
            shown = [data["image/png"]] if "image/png" in data else []
            for encoded in shown + ([data[SAVED_FIGURE]["dark"]] if SAVED_FIGURE in data else []):
                picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
                yield place, kind, np.asarray(picture).astype(int)


def cut_sides(pixels: np.ndarray) -> list[str]:
    """The sides at which something reaches the picture's edge."""
    sides = {"left": pixels[:, :EDGE], "right": pixels[:, -EDGE:], "top": pixels[:EDGE], "bottom": pixels[-EDGE:]}
    paper = pixels[0, 0]
    return [side for side, strip in sides.items() if (np.abs(strip - paper) > PAPER).any()]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_no_picture_is_cut_or_too_wide(chapter):
    problems = []
    for place, kind, pixels in pictures(chapter):
        widest = WIDEST_STILL if kind == "explorer" else WIDEST
        if pixels.shape[1] > widest:
            problems.append(f"cell {place}: {kind} of {pixels.shape[1]} pixels, at most {widest}; use theme.canvas's width")
        problems += [f"cell {place}: {kind} cut off on the {side}; words must fit" for side in cut_sides(pixels)]
    if len(problems) > TO_BE_MEASURED_ANEW.get(chapter.stem, 0):
        pytest.fail("\n".join([chapter.name, *problems]), pytrace=False)


def test_a_cut_word_is_seen():
    fig, ax = theme.canvas(None, 5, 2)
    theme.no_axes(ax)
    text = fig.text(0.3, 0.5, "words", fontsize=12)
    seen = []
    for x in (0.3, 0.95):
        text.set_x(x)
        picture = Image.open(io.BytesIO(base64.b64decode(png(fig)))).convert("RGB")
        seen.append(cut_sides(np.asarray(picture).astype(int)))
    assert seen == [[], ["right"]]
