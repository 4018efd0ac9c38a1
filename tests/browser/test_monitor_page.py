"""BatchMonitor on a page without a kernel: a run that was watched, scrubbed."""

from tests.browser.test_explorers import STEP, batch_monitor


def test_scrubbing_shows_each_moment(show):
    monitor = batch_monitor()
    page = show(monitor)
    page.focus(".nvx-scrub")
    page.keyboard.press("End")
    frames = monitor.watch.frames
    assert page.evaluate(STEP) == len(frames) - 1 and page.inner_text(".nvx-m-lamp") == "at rest"
    for step in range(0, len(frames), 5):
        page.locator(".nvx-scrub").fill(str(step))
        frame = frames[step]
        said = page.inner_text(".nvx-m-says")
        assert f"{frame['running']} running · {frame['waiting']} waiting · {frame['finished']} finished" in said
        assert page.locator(".nvx-m-line").count() == len(frame["rows"])
        for line, row in zip(page.locator(".nvx-m-line").all(), frame["rows"]):
            assert line.locator(".nvx-chip").inner_text() == str(row[0])
            assert line.locator(".nvx-m-status").inner_text().endswith(f"{row[3] - row[1]} of 20")
            text = monitor.watch.texts[row[0]][:row[6]].replace("\n", "⏎")
            shown = line.locator(".nvx-m-text").text_content().removeprefix("…")
            assert text.endswith(shown.strip()) and (len(shown) > 20 or len(text) <= 20)
    assert any(frame["waiting"] for frame in frames) and "waiting" in page.inner_text(".nvx-legend")


def test_it_plays(show):
    page = show(batch_monitor())
    page.get_by_label("looks per second").select_option("30")
    page.focus(".nvx-scrub")
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    page.wait_for_function("() => +document.querySelector('.nvx-root').dataset.step > 4")
    page.keyboard.press("Space")
