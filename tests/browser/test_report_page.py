"""The report in a real Chromium, from a file, at both widths and in both modes: nothing is asked for from elsewhere."""

import pytest

from tests.browser.test_explorers import MISPLACED, SIDEWAYS, STEP, run
from visualizations.report import report_html


@pytest.mark.parametrize(("width", "mode"), [(700, "dark"), (1400, "light")])
def test_the_report_of_a_run(browser, tmp_path, width, mode):
    (tmp_path / "report.html").write_text(report_html(run().trace), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=mode)
    errors, asked = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_function("() => document.querySelectorAll('.nvx-root[data-ready]').length === 2")
    assert page.evaluate(SIDEWAYS) is False and page.evaluate(MISPLACED) == []
    page.locator(".nvx-scrub").first.focus()
    page.keyboard.press("End")
    assert page.evaluate(STEP) == len(run().trace) - 1
    pictures = page.locator("figure img")
    assert pictures.count() == 4
    for i in range(4):
        assert pictures.nth(i).evaluate("img => img.complete && img.naturalWidth > 300 && img.clientWidth <= innerWidth")
        shown, light = (pictures.nth(i).evaluate(f"img => img.{source}") for source in ("currentSrc", "src"))
        assert (shown == light) == (mode == "light")
    page.close()
    assert errors == [] and asked == []
