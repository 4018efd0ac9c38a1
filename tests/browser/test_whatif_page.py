"""The "what if" explorers in a real Chromium: knobs by keyboard, bars that follow, and a step that is kept to compare."""

import re

import pytest

from visualizations import ParallelCostExplorer, RooflineExplorer

WIDTHS = "() => [...document.querySelectorAll('.nvx-w-row')].map(row => [...row.querySelectorAll('.nvx-w-piece')]" \
         ".reduce((sum, piece) => sum + parseFloat(piece.style.width), 0))"


def turn(page, knob: str, key: str, times: int = 1) -> str:
    """Press a key on a knob; returns what it then says."""
    slider = page.locator(f"[data-knob={knob}]")
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)
    return slider.get_attribute("aria-valuetext")


def test_a_knob_moves_the_bars_and_the_lesson(show):
    page = show(ParallelCostExplorer())
    widths, told = page.evaluate(WIDTHS), page.locator(".nvx-w-told").inner_text()
    assert widths[0] == pytest.approx(100) and told.startswith("8 ranks are fastest")
    assert turn(page, "model", "ArrowLeft") == "Qwen3-0.6B"
    assert page.locator(".nvx-w-told").inner_text().startswith("One card is fastest")
    assert page.evaluate(WIDTHS) != widths
    assert turn(page, "latency", "Home") == "2 µs + bytes"
    assert page.locator(".nvx-w-chosen").inner_text().splitlines()[0] != "one card"


def test_a_kept_step_is_compared_with_the_next(show):
    page = show(RooflineExplorer())
    assert page.evaluate(WIDTHS) == [pytest.approx(100)]
    page.get_by_text("keep this step").click()
    assert turn(page, "bytes", "ArrowRight") == "8 bits, 1 byte"
    kept, now = page.evaluate(WIDTHS)
    times = re.search(r"([\d.]+) times as fast", page.locator(".nvx-w-told").inner_text())
    assert kept == pytest.approx(100) and float(times[1]) == pytest.approx(kept / now, abs=0.02)
    assert turn(page, "sequences", "End") == "256" and turn(page, "tokens", "End") == "1,024"
    assert "arithmetic is the limit" in page.locator(".nvx-w-told").inner_text()
