"""JourneyExplorer in a real Chromium: rooms, stops and tokens lead to one another."""

from tests.browser.test_explorers import STEP, journey
from visualizations.explorers.journey import JourneyExplorer


def test_every_stop_shows_its_room_its_code_and_its_values(show):
    page = show(JourneyExplorer(journey()))
    for index, stop in enumerate(journey()["stops"]):
        page.locator(".nvx-scrub").fill(str(index))
        assert page.locator(".nvx-j-room[aria-current=step] b").inner_text() == stop["room"]
        assert page.inner_text(".nvx-j-says") == stop["says"]
        assert page.locator(".nvx-j-lit").count() == len(stop["lit"])
        assert page.locator(".nvx-j-values dt").all_inner_texts() == [name for name, _ in stop["values"]]


def test_rooms_steps_and_tokens_lead_to_their_stops(show):
    stops = journey()["stops"]
    page = show(JourneyExplorer(journey()), width=1400)
    page.get_by_role("button", name="sampler").click()
    first = next(i for i, stop in enumerate(stops) if stop["room"] == "sampler")
    assert page.evaluate(STEP) == first
    page.keyboard.press("PageDown")
    assert page.evaluate(STEP) == next(i for i, stop in enumerate(stops) if stop["step"] == stops[first]["step"] + 1)
    page.keyboard.press("PageUp")
    page.locator(".nvx-j-token").last.click()
    assert page.evaluate(STEP) == next(i for i, stop in enumerate(stops) if stop["tokens"] == len(journey()["words"]))
    assert page.locator(".nvx-j-later").count() == 0
