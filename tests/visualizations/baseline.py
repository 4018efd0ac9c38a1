"""Pictures of every example, as they looked when somebody last looked: `python -m tests.visualizations.baseline [NAME ...]`
draws them again (all, or those named). Look at them before you commit them.
"""

import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tests.visualizations.samples import FIGURES
from visualizations import theme

MODES = {"light": theme.LIGHT, "dark": theme.DARK}
FOLDER = Path(__file__).parent / "baseline"
DPI = 60
# Pictures are compared as means over cells. Moving one by a whole pixel, more than another anti-aliasing does, changes cells
# by 12 to 25 of 255 and the mean of all by 0.5 to 4 (measured on these).
CELL = 10  # pixels
CELL_TOLERANCE = 35
MEAN_TOLERANCE = 4.5


def path(name: str, mode: str) -> Path:
    return FOLDER / f"{name}-{mode}.png"


def drawn(name: str, mode: str) -> tuple[Figure, Image.Image]:
    """The figure, and its picture."""
    out = io.BytesIO()
    # Only the font inside matplotlib: the same on every machine.
    with theme.using(MODES[mode]), matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = FIGURES[name]()
        figure.savefig(out, format="png", dpi=DPI)
    return figure, Image.open(out).convert("RGB")


def render(name: str, mode: str) -> Image.Image:
    return drawn(name, mode)[1]


def compare(picture: Image.Image, expected: Image.Image) -> str:
    """What differs, in words; "" when nothing does that a reader would see."""
    if max(abs(a - b) for a, b in zip(picture.size, expected.size)) > 4:
        return f"{picture.size} pixels instead of {expected.size}"
    grid = tuple(max(1, side // CELL) for side in expected.size)
    new, old = (np.asarray(image.convert("RGB").resize(grid, Image.Resampling.BOX), dtype=float)
                for image in (picture, expected))
    cells = np.abs(new - old).max(-1)
    if cells.max() > CELL_TOLERANCE or cells.mean() > MEAN_TOLERANCE:
        y, x = np.unravel_index(cells.argmax(), cells.shape)
        return (f"differs by {cells.max():.0f} of 255 near x={x * CELL}, y={y * CELL} (pixels at {DPI} dpi) and by "
                f"{cells.mean():.2f} on the whole")
    return ""


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or FIGURES:
        for mode in MODES:
            # Few colours make small files; dithering would add noise.
            render(name, mode).quantize(128, dither=Image.Dither.NONE).save(path(name, mode), optimize=True)
            print(path(name, mode).relative_to(FOLDER.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
