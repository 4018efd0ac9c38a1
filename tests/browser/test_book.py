"""The book as a reader has it: built from the committed chapters, opened from a folder, with the network cut off."""

import re
import subprocess

import pytest

from chapters.book import build
from chapters.book.project import repository, web_address
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
    for mode in ("light", "dark"):  # the map of the course
        assert reader.locator(f"article .nvx-figure > img.nvx-{mode}").evaluate("img => img.naturalWidth") > 500
    for chapter, title in zip(pages, titles):
        reader.goto((book / f"{chapter.stem}.html").as_uri())
        assert title.partition(" · ")[2] in reader.locator("article h1").inner_text()
        assert reader.locator(".cell").count() > 5 or chapter.stem.startswith(("A_", "B_"))


# What an explorer shows, as a number: its words, its pictures, and how wide its bars are.
LOOK = """root => { let hash = 0;
  const text = root.innerText + [...root.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()).join()
  + [...root.querySelectorAll('[style]')].map(node => node.getAttribute('style')).join();
  for (let i = 0; i < text.length; i++) hash = (hash * 31 + text.charCodeAt(i)) | 0; return hash; }"""


def drive(root, reader) -> list[str]:
    """Use every control of an explorer that needs no kernel; returns what did not do anything."""
    idle = []
    scrub = root.locator(".nvx-scrub")
    if scrub.count() and scrub.is_enabled() and (last := int(scrub.get_attribute("max"))) >= 1:
        scrub.focus()
        looks = set()
        for key, step in (("Home", 0), ("ArrowRight", 1), ("End", last), ("ArrowLeft", last - 1)):
            reader.keyboard.press(key)
            if root.get_attribute("data-step") != str(step):
                idle.append(f"{key} on the player: step {root.get_attribute('data-step')}, not {step}")
            looks.add(root.evaluate(LOOK))
        if len(looks) < min(3, last + 1):
            idle.append("stepping shows nothing new")
    for slider in root.locator("input[type=range]:not(.nvx-scrub):enabled").all():
        before, looks = slider.input_value(), set()
        for key in ("Home", "End"):
            slider.focus()
            reader.keyboard.press(key)
            looks.add(root.evaluate(LOOK))
        if len(looks) < 2:
            idle.append(f"slider {slider.get_attribute('aria-label')}")
        slider.fill(before)
    for choice in root.locator("select:not(.nvx-speed):enabled").all():
        before, values = choice.input_value(), choice.locator("option").evaluate_all("options => options.map(o => o.value)")
        looks = set()
        for value in dict.fromkeys([*values[:3], before]):
            choice.select_option(value)
            looks.add(root.evaluate(LOOK))
        if len(values) > 1 and len(looks) < 2:
            idle.append(f"choice {choice.get_attribute('aria-label')}")
    for button in root.locator("button:enabled").all():
        if button.is_visible() and not button.evaluate("node => !!node.closest('.nvx-player')"):
            button.click()  # that it raises nothing, the page's own errors say
    return idle


def test_every_control_of_every_explorer_of_every_chapter_does_something(book, reader):
    """In one browser and without a kernel, from what the chapters saved. What answers in a kernel after Run All,
    tests/notebooks/drive.py asks when a chapter is run; and three chapters are run and driven in JupyterLab itself."""
    idle = {}
    for chapter in sorted(build.CHAPTERS.glob("*.ipynb")):
        saved = chapter.read_text(encoding="utf-8").count(f'"{SAVED}"')
        if not saved:
            continue
        reader.goto((book / f"{chapter.stem}.html").as_uri())
        reader.wait_for_function("n => document.querySelectorAll('.nvx-root[data-ready]').length === n", arg=saved)
        for place, root in enumerate(reader.locator(".nvx-root").all()):
            if found := drive(root, reader):
                idle[f"{chapter.stem}, explorer {place}"] = found
        assert reader.locator(".nvx-live :enabled").count() == 0  # what needs a kernel is greyed
    assert idle == {}


def test_tables_that_cells_put_out_are_tables(book):
    """A table in an output is Markdown: where it is not known as one, its bars stand in the page as text."""
    pages = {page.name: page.read_text(encoding="utf-8") for page in book.glob("[0-9AB]*.html")}
    assert [name for name, text in pages.items() if re.search(r"<p>\s*\|", text)] == []
    assert sum(text.count("<table") for text in pages.values()) > 60


# Whatever scrolls sideways by itself, or would if its edge were not cut; explorers have views that zoom, and scroll on purpose.
SCROLLS = """() => [...document.querySelectorAll('.bd-article, .bd-article *')].filter(node => {
  const style = getComputedStyle(node);
  return node.clientWidth && node.scrollWidth > node.clientWidth + 1 && style.overflowX !== 'visible'
    && !node.closest('.nvx-root') && !node.closest('svg, .MathJax, mjx-container');
}).map(node => `${node.tagName}.${node.className} ${node.scrollWidth} > ${node.clientWidth}: ${node.innerText.slice(0, 80)}`)"""
FIGURES_SCROLL = """() => [...document.querySelectorAll('.nvx-figure')].filter(node => node.scrollWidth > node.clientWidth + 1)
  .map(node => `${node.scrollWidth} > ${node.clientWidth}: ${node.querySelector('img').alt.slice(0, 80)}`)"""


def test_nothing_scrolls_sideways_at_1400(book, reader):
    """Chapters, their printed lines, listings and tables, the READMEs, the reference and some of the sources."""
    reader.set_viewport_size({"width": 1400, "height": 900})
    wide = {}
    pages = {*book.glob("*.html"), *sorted(book.glob("_modules/**/*.html"))[::12]} - {book / "search.html"}
    for file in sorted(pages):  # the search asks for its index, which a folder refuses
        reader.goto(file.as_uri(), wait_until="domcontentloaded")
        page = reader.evaluate("() => document.documentElement.scrollWidth > innerWidth ? ['the page itself'] : []")
        if found := page + reader.evaluate(SCROLLS):
            wide[file.stem] = found
    assert wide == {}


def test_figures_fit_a_page_of_700(book, reader):
    reader.set_viewport_size({"width": 700, "height": 900})
    wide = {}
    for chapter in sorted(build.CHAPTERS.glob("*.ipynb")):
        reader.goto((book / f"{chapter.stem}.html").as_uri(), wait_until="domcontentloaded")
        if found := reader.evaluate(FIGURES_SCROLL):
            wide[chapter.stem] = found
    assert wide == {}


def test_the_landing_page_leads_to_the_readme_and_to_the_repository(book, reader):
    reader.goto((book / "index.html").as_uri())
    reader.locator("article p a[href='readme.html']").click()
    reader.wait_for_url("**/readme.html")
    assert reader.locator("article h1").inner_text().startswith("nano-vllm, the course")
    assert reader.locator("article a[href='04_scheduler.html']").count() == 1
    reader.locator("article a[href='readme-zh.html']").click()
    reader.wait_for_url("**/readme-zh.html")
    assert reader.locator("article a[href='04_scheduler.html']").count() == 1


@pytest.mark.parametrize(("remote", "address"), [
    ("git@github.com:me/it.git", "https://github.com/me/it"), ("https://github.com/me/it", "https://github.com/me/it"),
    ("https://me:a-secret-key@git.example.org/me/it.git\n", "https://git.example.org/me/it"),
    ("ssh://git@example.org:2222/me/it.git", "https://example.org/me/it"), ("/srv/it.git", None), ("../it", None),
    ("https://localhost/it", None), ("", None)])
def test_a_remote_becomes_an_address_without_its_key(remote, address):
    assert web_address(remote) == address


def test_the_repository_is_linked_where_it_has_an_address(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'it'\n", encoding="utf-8")
    assert repository(tmp_path) == "the repository"
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "git@github.com:me/it.git"], check=True)
    assert repository(tmp_path) == "[the repository](https://github.com/me/it)"
    (tmp_path / "pyproject.toml").write_text("[project.urls]\nRepository = 'https://example.org/it'\n", encoding="utf-8")
    assert repository(tmp_path) == "[the repository](https://example.org/it)"


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
