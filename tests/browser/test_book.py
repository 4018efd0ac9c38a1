"""The book as a reader has it: built from the committed chapters, opened from a folder, with the network cut off."""

import pytest

from chapters.book import build

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
    titles = reader.locator("article .toctree-wrapper").first.locator("a").all_inner_texts()
    pages = sorted(build.CHAPTERS.glob("*.ipynb"))
    assert len(titles) == len(pages)
    for chapter, title in zip(pages, titles):
        reader.goto((book / f"{chapter.stem}.html").as_uri())
        assert title in reader.locator("article h1").inner_text()
        assert reader.locator(".cell").count() > 5 or chapter.stem.startswith(("A_", "B_"))


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
