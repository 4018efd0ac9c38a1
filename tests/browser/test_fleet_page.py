"""FleetExplorer in a real Chromium: going from request to request, the reasons, the shades, and choosing by pointing."""

from tests.browser.test_explorers import STEP, fleet_explorer


def told(page, run: int) -> dict[str, str]:
    story = page.locator(".nvx-fl-story").nth(run)
    return dict(zip(story.locator("dt").all_inner_texts(), story.locator("dd").all_inner_texts()))


def test_each_request_says_where_it_went_and_why_in_both_runs(show):
    explorer = fleet_explorer()
    page = show(explorer, width=1200)
    robin, aware = explorer.runs.values()
    logged = {(r.conversation, r.turn): r for r in aware.log}
    page.focus(".nvx-scrub")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(STEP) == 33
    ours = robin.log[33]
    other = logged[ours.conversation, ours.turn]
    assert told(page, 0)["because"] == "next in turn" and told(page, 0)["sent to"] == f"replica {ours.replica}"
    assert told(page, 1)["because"] == other.reason and told(page, 1)["sent to"] == f"replica {other.replica}"
    assert told(page, 1)["found cached"] == f"{other.hit_tokens} of its {other.num_prompt_tokens} tokens"
    assert page.locator(".nvx-fl-story").nth(0).locator(".nvx-fl-load").count() == 3


def test_the_table_compares_the_runs_and_the_shade_can_be_changed(show):
    explorer = fleet_explorer()
    page = show(explorer, width=1000)
    row = page.locator(".nvx-fl-table tr", has_text="hit rate").locator("td").all_inner_texts()
    assert [float(cell) for cell in row] == [round(100 * report.hit_rate, 1) for report in explorer.runs.values()]
    picture = "() => document.querySelector('.nvx-root canvas').toDataURL()"
    before = page.evaluate(picture)
    page.get_by_label("what the shades show").select_option("found cached")
    assert page.evaluate(picture) != before and "%" in page.inner_text(".nvx-fl-scale")


def test_a_click_chooses_the_nearest_request_of_that_replica(show):
    explorer = fleet_explorer()
    page = show(explorer, width=1000)
    canvas = page.locator(".nvx-root canvas")
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + 84 + 5, box["y"] + 22 + 22 + 10)  # replica 1 of the first run, at the beginning
    chosen = next(iter(explorer.runs.values())).log[page.evaluate(STEP)]
    assert chosen.replica == 1
    page.mouse.move(box["x"] + 84 + 5, box["y"] + 22 + 10)
    assert page.inner_text(".nvx-tip").startswith("replica 0 at 0.0")
