"""SamplerExplorer in a real Chromium: sliders, draws and keys, on a page without a kernel."""

from tests.browser.test_explorers import MISPLACED, SIDEWAYS, STEP, UNNAMED, UNQUIET, sampler_explorer
from visualizations.explorers.sampler import SamplerExplorer


def says(page) -> str:
    return page.inner_text(".nvx-s-says")


def slider(page, name: str):
    return page.get_by_role("slider", name=name, exact=True)


def test_each_slider_changes_what_is_left(show):
    page = show(sampler_explorer())
    assert says(page).startswith("20 of 300 tokens can be drawn")
    slider(page, "top-k").fill("7")
    assert says(page).startswith("7 of 300")
    page.get_by_role("button", name="All off").click()
    assert says(page).startswith("300 of 300")
    slider(page, "min-p").fill("0.5")
    few = int(says(page).split()[0])
    assert 1 <= few < 30
    slider(page, "min-p").fill("0")
    slider(page, "top-p").fill("0.5")
    assert int(says(page).split()[0]) < 60
    slider(page, "temperature").fill("0")
    assert says(page).startswith("Greedy")
    before = page.locator("canvas").first.get_attribute("aria-label")
    page.get_by_role("button", name="As given").click()
    slider(page, "repetition penalty").fill("2")
    assert says(page).startswith("20 of 300") and "repetition" in page.locator("canvas").first.get_attribute("aria-label")
    assert page.locator("canvas").first.get_attribute("aria-label") != before


def test_draws_are_counted_and_a_new_distribution_starts_over(show):
    page = show(sampler_explorer())
    heading, trend = page.locator(".nvx-s-race h4"), page.locator(".nvx-s-trend h4")
    assert heading.inner_text() == "The race of draw 1" and page.inner_text(".nvx-s-result").startswith("Drawn: “ word")
    page.get_by_role("button", name="Draw", exact=True).click()
    assert heading.inner_text() == "The race of draw 2"
    page.get_by_role("button", name="+ 10,000").click()
    page.wait_for_function("() => document.querySelector('.nvx-s-race h4').textContent === 'The race of draw 10,002'")
    assert float(trend.inner_text().split("shares are ")[1].split()[0]) < 0.04
    result = page.inner_text(".nvx-s-result")
    page.get_by_label("show the race as").select_option("times")
    assert page.inner_text(".nvx-s-result") == result  # two pictures of one draw
    page.get_by_label("seed of the noise").fill("12")
    assert heading.inner_text() == "The race of draw 1"
    page.get_by_role("button", name="+ 100").click()
    slider(page, "temperature").fill("1.3")
    assert heading.inner_text() == "The race of draw 1"


def test_keys_of_a_slider_stay_there_and_others_step(show):
    page = show(sampler_explorer())
    page.focus("input[aria-label=temperature]")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(STEP) == 0 and slider(page, "temperature").input_value() == "0.85"
    page.focus(".nvx-scrub")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(STEP) == 1 and "word5 word6 word1 ?" in " ".join(page.inner_text(".nvx-s-text").split())
    page.keyboard.press("End")
    assert page.evaluate(STEP) == 2


def test_one_row_has_no_player_and_a_bar_says_its_token(show):
    page = show(SamplerExplorer([3.0, 1.0, 2.0, -4.0, 0.5, 0.1, 0.2, 0.3]), width=700, mode="dark")
    assert page.locator(".nvx-player").count() == 0 and slider(page, "repetition penalty").count() == 0
    canvas = page.locator("canvas").first
    box = canvas.bounding_box()
    canvas.hover(position={"x": 118, "y": 40})
    assert "(token 0), model's own: 5" in page.inner_text(".nvx-tip") and box["width"] < 700
    for check in (MISPLACED, UNQUIET, UNNAMED):
        assert page.evaluate(check) == []
    assert page.evaluate(SIDEWAYS) is False
