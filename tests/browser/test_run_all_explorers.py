"""Explorers after Run All: those that drive something alive still do, whatever the cells below them did."""

import base64
import json

import pytest

from tests.browser.conftest import ROOT
from visualizations.explorers.base import SAVED, unpack

CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
RUN_SECONDS = 400
ANSWERED = """([root, before]) => root.querySelector('.nvx-error').textContent
  || (+root.querySelector('.nvx-scrub').max > before ? 'moved' : '')"""


def live_explorers(chapter) -> int:
    """How many explorers of a chapter drive a simulation or an engine, by what they saved."""
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    saved = [output["data"][SAVED] for output in outputs if SAVED in output.get("data", {})]
    return sum("live" in (data if isinstance(data := unpack(base64.b64decode(one["payload"])), dict) else {}) for one in saved)


LIVE = {chapter.stem: count for chapter in CHAPTERS if (count := live_explorers(chapter))}


def test_there_are_some():
    assert LIVE.get("04_scheduler") == 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chapter", LIVE)
def test_what_it_drives_is_still_alive_after_run_all(lab_page, chapter):
    lab_page.open(f"chapters/{chapter}.ipynb")
    lab_page.clear_outputs()
    cells = lab_page.run_all(RUN_SECONDS)
    wrong = [(cell["place"], cell["errors"]) for cell in cells if bool(cell["errors"]) != cell["must_fail"]]
    assert wrong == []
    page = lab_page.page
    roots = page.locator(".nvx-root:has(.nvx-live)")
    assert roots.count() == LIVE[chapter]
    for i in range(roots.count()):
        root = roots.nth(i)
        root.scroll_into_view_if_needed()
        root.get_by_placeholder("a text, or a number of tokens").fill("6")
        root.get_by_role("button", name="Add request").click()
        step = root.get_by_role("button", name="Step", exact=True)
        page.wait_for_function("button => !button.disabled", arg=step.element_handle())
        before = int(root.locator(".nvx-scrub").get_attribute("max"))
        step.click()
        answer = page.wait_for_function(ANSWERED, arg=[root.element_handle(), before - 1]).json_value()
        assert answer == "moved", f"explorer {i} of {chapter}: {answer}"
    assert lab_page.broken_widgets() == [] and lab_page.console_errors == [] and lab_page.outside == []
