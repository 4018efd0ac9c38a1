"""GraphTimelineExplorer in a real Chromium: playing, zooming, pointing, choosing."""

import re

from tests.browser.test_explorers import MISPLACED, STEP
from tests.visualizations.samples import profiled
from visualizations.explorers.graph_timeline import TICKS, GraphTimelineExplorer

LABELS, RIGHT = 118, 6  # of the chart, see graph_timeline.js


def explorer(**keywords) -> GraphTimelineExplorer:
    return GraphTimelineExplorer({"eager": (profiled(False), 0), "captured": (profiled(True), 0)}, **keywords)


def states(page) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(".nvx-gt-states li").all_inner_texts()]


def span(page) -> float:
    """Microseconds in view."""
    number, unit = re.match(r"([\d.]+) (\S+) in view", page.inner_text(".nvx-gt-span")).groups()
    return float(number) * {"ns": 1e-3, "µs": 1, "ms": 1e3}[unit]


def test_playing_shows_who_is_how_far_at_every_moment(show):
    page = show(explorer(step=0))
    assert states(page) == ["eager 0 of 40 launches, 0 of 40 kernels done · nothing runs yet",
                            "captured 0 of 1 launch, 0 of 40 kernels done · nothing runs yet"]
    page.locator(".nvx-scrub").fill(str(TICKS // 2))
    now = 0.5 * 200e-6 * 1.02
    done = sum(o["time"] + o["duration"] <= now for o in profiled(False).operations if o["track"] != "launches")
    assert f"{done} of 40 kernels done" in states(page)[0] and "done after 90.0 µs" in states(page)[1]
    page.get_by_label("ticks per second").select_option("30")
    page.focus(".nvx-scrub")
    page.keyboard.press("Space")
    page.wait_for_function(f"() => +document.querySelector('.nvx-root').dataset.step > {TICKS // 2 + 4}")
    page.keyboard.press("Space")
    page.keyboard.press("End")
    assert page.evaluate(STEP) == TICKS
    assert all("40 of 40 kernels done" in state for state in states(page))


def test_zooming_and_moving_with_keys_buttons_wheel_and_mouse(show):
    page = show(explorer(), width=1000)
    chart = page.get_by_role("img", name="Timeline of")
    whole = span(page)
    page.get_by_role("button", name="zoom in").click()
    assert span(page) == whole / 2
    page.keyboard.press("-")
    assert span(page) == whole
    page.get_by_role("button", name="show all of captured").click()
    assert 90 <= span(page) <= 93
    page.keyboard.press("0")
    page.keyboard.press("+")
    window = page.get_by_role("img", name="The whole step")
    before = window.get_attribute("aria-label")
    page.keyboard.press("Shift+ArrowRight")
    moved = window.get_attribute("aria-label")
    assert moved != before and page.evaluate(STEP) == TICKS
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 400, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60, steps=4)
    page.mouse.up()
    assert window.get_attribute("aria-label") != moved
    page.keyboard.down("Control")
    page.mouse.wheel(0, 100)
    page.keyboard.up("Control")
    page.wait_for_function("before => document.querySelector('.nvx-gt-span').textContent !== before", arg="102 µs in view")
    assert span(page) > 102
    chart.dblclick(position={"x": 500, "y": 60})
    assert span(page) < 102
    assert page.evaluate(MISPLACED) == []


def test_an_operation_is_pointed_at_and_chosen(show):
    page = show(explorer(), width=1000)
    chart = page.get_by_role("img", name="Timeline of")
    wide = chart.bounding_box()["width"] - LABELS - RIGHT
    operation = [o for o in profiled(False).operations if o["track"] != "launches"][7]
    middle = (operation["time"] + operation["duration"] / 2) / (200e-6 * 1.02)
    device_lane = 20 + 13 + 4 + 20 + 4 + 15
    chart.hover(position={"x": LABELS + middle * wide, "y": device_lane})
    assert "kernel 7, 1.3 µs" in page.inner_text(".nvx-tip")
    chart.click(position={"x": LABELS + middle * wide, "y": device_lane})
    told = page.locator(".nvx-gt-told")
    assert "eager, GPU 0, stream 7: kernel 7, 1.3 µs" in told.inner_text()
    assert "3.1 µs after the one before" in told.inner_text()
    chart.focus()
    page.keyboard.press(".")
    assert "kernel 8," in told.inner_text()
    page.keyboard.press("ArrowUp")
    assert "eager, launch: cudaLaunchKernel" in told.inner_text()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert told.inner_text().startswith("captured, GPU 0, stream 7")
    page.keyboard.press("Escape")
    assert told.inner_text().startswith("Point at an operation")


def test_time_by_kind_is_of_what_is_in_view(show):
    page = show(explorer(), width=700, mode="dark")
    table = page.locator(".nvx-gt-table")
    assert "52.0 µs" in table.inner_text() and "40 ×" in table.inner_text()
    page.get_by_role("button", name="zoom in").click()
    page.get_by_role("button", name="zoom in").click()
    assert "in view" in table.inner_text() and "52.0 µs" not in table.inner_text()
    pick = page.get_by_role("button", name="the rest")
    pick.click()
    assert page.get_by_role("button", name="the rest").get_attribute("aria-pressed") == "true"
