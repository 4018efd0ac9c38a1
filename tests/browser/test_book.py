"""The book as a reader has it: built from the committed chapters, opened from a folder, with the network cut off."""

import pytest

from chapters.book import build
from visualizations.explorers.base import SAVED

STEP = "() => +document.querySelector('.nvx-root').dataset.step"
# Sphinx's own pages ask for nothing else, but a theme that took fonts or scripts from elsewhere would.
LOCAL = ("file://", "data:", "blob:")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    out = tmp_path_factory.mktemp("book")
    chapters = sorted(build.CHAPTERS.glob("*.ipynb"))
    assert build.build(chapters, out) == 0, "Sphinx warned; its words are above"
    return out / "html"


@pytest.fixture
def reader(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, wrong = context.new_page(), []

    def guard(route):
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", guard)
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    assert wrong == []


def test_every_chapter_is_there_and_needs_nothing_from_outside(book, reader):
    reader.goto((book / "index.html").as_uri())
    rows = reader.locator("article table tbody tr").all()
    pages = sorted(build.CHAPTERS.glob("*.ipynb"))
    titles = [row.locator("a").first.inner_text() for row in rows]
    assert len(titles) == len(pages)
    for chapter, row in zip(pages, rows):
        _, question, minutes = row.locator("td").all_inner_texts()
        assert question.endswith("?") or chapter.stem.startswith("B_")
        assert 5 <= int(minutes) <= 60
    assert reader.locator("article .nvx-figure img.nvx-light").evaluate("img => img.naturalWidth") > 500
    for chapter, title in zip(pages, titles):
        reader.goto((book / f"{chapter.stem}.html").as_uri())
        assert title.partition(" · ")[2] in reader.locator("article h1").inner_text()
        assert reader.locator(".cell").count() > 5 or chapter.stem.startswith(("A_", "B_"))


def test_every_explorer_of_every_chapter_is_stepped(book, reader):
    """In one browser and without a kernel: each draws itself, and those with steps step."""
    for chapter in sorted(build.CHAPTERS.glob("*.ipynb")):
        saved = chapter.read_text(encoding="utf-8").count(f'"{SAVED}"')
        if not saved:
            continue
        reader.goto((book / f"{chapter.stem}.html").as_uri())
        reader.wait_for_function("n => document.querySelectorAll('.nvx-root[data-ready]').length === n", arg=saved)
        for root in reader.locator(".nvx-root").all():
            scrub = root.locator(".nvx-scrub")
            if scrub.count() and scrub.is_enabled() and int(scrub.get_attribute("max")) >= 1:
                scrub.focus()
                reader.keyboard.press("Home")
                reader.keyboard.press("ArrowRight")
                assert root.get_attribute("data-step") == "1", chapter.stem
        assert reader.locator(".nvx-live :enabled").count() == 0  # what needs a kernel is greyed


def test_code_does_not_scroll_sideways_at_1400(book, reader):
    reader.set_viewport_size({"width": 1400, "height": 900})
    for chapter in sorted(build.CHAPTERS.glob("*.ipynb")):
        reader.goto((book / f"{chapter.stem}.html").as_uri())
        assert reader.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), chapter.stem
        wide = reader.evaluate("() => [...document.querySelectorAll('.cell_input pre')].filter("
                               "pre => pre.scrollWidth > pre.clientWidth + 1).map(pre => pre.innerText.slice(0, 80))")
        assert wide == [], chapter.stem


def test_figures_follow_the_books_dark_mode_and_numbers_of_chapters_are_links(book, reader):
    reader.goto((book / "02_block_manager.html").as_uri())
    shown = "() => [...document.querySelectorAll('.nvx-figure')[0].children].map(img => getComputedStyle(img).display)"
    for mode, want in (("light", [True, False]), ("dark", [False, True])):
        reader.evaluate("mode => document.documentElement.dataset.theme = mode", mode)
        assert [display != "none" for display in reader.evaluate(shown)] == want
    assert reader.locator("article a[href='03_prefix_caching.html']").count() >= 2
    assert reader.locator("article a[href*='_modules/nanovllm/engine/block_manager.html']").count() >= 1
    assert (book / "_modules/nanovllm/engine/block_manager.html").is_file()


def test_an_explorer_is_dragged_without_a_kernel(book, reader):
    reader.goto((book / "04_scheduler.html").as_uri())
    reader.wait_for_function("() => document.querySelectorAll('.nvx-root[data-ready]').length >= 2")
    slider = reader.locator(".nvx-root input[type=range]").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    before = reader.evaluate(STEP)
    reader.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2)
    reader.mouse.down()
    reader.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=10)
    reader.mouse.up()
    assert reader.evaluate(STEP) > before + 5


def test_explorers_follow_the_books_dark_mode(book, reader):
    reader.goto((book / "04_scheduler.html").as_uri())
    reader.wait_for_function("() => document.querySelector('.nvx-root[data-ready]')")
    for mode in ("light", "dark"):
        reader.evaluate("mode => document.documentElement.dataset.theme = mode", mode)
        reader.wait_for_function("mode => document.querySelector('.nvx-root').dataset.mode === mode", arg=mode)


def test_a_number_that_no_chapter_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        build.main(["--only", "99"])
    assert "--only 99" in capsys.readouterr().err
