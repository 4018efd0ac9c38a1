"""Twenty seconds of an explorer as a GIF, for a page that shows no JavaScript (the README).

    python -m visualizations.explorers.film          # writes chapters/book/static/scheduler.gif; make film does the same

Opens the explorer in a headless Chromium, presses the right arrow key through a run, and takes a picture of every step. Needs
what the tests need: playwright and a Chromium.
"""

import argparse
import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from nanovllm.fleet.simulation import Simulation
from visualizations.explorers.base import Explorer, standalone_html
from visualizations.explorers.scheduler import SchedulerExplorer

OUT = Path(__file__).parents[2] / "chapters" / "book" / "static" / "scheduler.gif"
WIDTH, COLOURS = 860, 96
SECONDS = 20


def run() -> Simulation:
    """Eight requests in a cache that is too small for them: chunks, shared blocks, waiting, preemption."""
    simulation = Simulation(num_blocks=36, block_size=4, max_num_batched_tokens=20, max_num_seqs=6)
    system = "You are a little time now and after the day we came back"
    for at, question in enumerate(("tell me about cats", "what was before the day", "who came here again and why")):
        simulation.add(f"{system} {question}", 18, at=at)
    for at, prompt, output in ((3, 44, 8), (6, 5, 22), (10, 24, 12), (14, 9, 16), (18, 30, 6)):
        simulation.add(prompt, output, at=at)
    simulation.run()
    return simulation


def frames(explorer: Explorer, num_steps: int) -> list[Image.Image]:
    """A picture of the explorer at each step, as Chromium draws it."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    executable = os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)
    if executable is None:
        raise RuntimeError("no Chromium found; apt install chromium, or name it with CHROMIUM=/path/to/chrome")
    pictures = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "page.html"
        page_file.write_text(standalone_html([explorer]), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.wait_for_selector(".nvx-root[data-ready]")
        root, slider = page.locator(".nvx-root"), page.locator(".nvx-root input[type=range]").first
        slider.focus()
        for step in range(num_steps):
            page.wait_for_function("n => +document.querySelector('.nvx-root').dataset.step === n", arg=step)
            pictures.append(Image.open(io.BytesIO(root.screenshot())).convert("RGB"))
            page.keyboard.press("ArrowRight")
        browser.close()
    return pictures


def save(pictures: list[Image.Image], out: Path) -> None:
    """One palette for all pictures, so that nothing flickers; a GIF keeps only what changed between two of them."""
    size = (WIDTH - 40, max(picture.height for picture in pictures))
    canvas = []
    for picture in pictures:
        sheet = Image.new("RGB", (max(size[0], picture.width), size[1]), "white")
        sheet.paste(picture)
        canvas.append(sheet)
    palette = canvas[len(canvas) // 2].quantize(COLOURS)
    images = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in canvas]
    duration = round(1000 * SECONDS / len(images))
    images[0].save(out, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m visualizations.explorers.film", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    simulation = run()
    pictures = frames(SchedulerExplorer(simulation.trace), len(simulation.trace))
    save(pictures, options.out)
    print(f"{options.out}: {len(pictures)} pictures, {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
