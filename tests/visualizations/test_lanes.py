"""Pictures of threads and processes: what is drawn is possible, and what they name is what the engine has."""

import threading
from itertools import combinations

import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib.patches import FancyArrowPatch, Rectangle

import visualizations as v
from nanovllm.serving.engine_thread import EngineThread
from tests.visualizations.test_figures import artists, texts
from visualizations.figures.lanes import HIGH, KINDS

PICTURES = {"serving": v.plot_serving_threads, "ranks": v.plot_rank_processes}


def boxes(fig) -> dict[int, list[Rectangle]]:
    """The boxes of each lane, by its number from above."""
    lanes: dict[int, list[Rectangle]] = {}
    for kind in KINDS:
        for box in artists(fig, Rectangle, f"{kind}-"):
            lanes.setdefault(int(box.get_gid().rsplit("-", 1)[1]), []).append(box)
    return lanes


@pytest.mark.parametrize("name", PICTURES)
def test_a_lane_does_one_thing_at_a_time(name):
    for lane, own in boxes(PICTURES[name]()).items():
        spans = [(box.get_x(), box.get_x() + box.get_width()) for box in own]
        assert all(end > start for start, end in spans)
        for (a, b), (c, d) in combinations(spans, 2):
            assert b <= c or d <= a, (lane, (a, b), (c, d))


@pytest.mark.parametrize("name", PICTURES)
def test_an_arrow_leads_from_a_box_to_a_later_one(name):
    fig = PICTURES[name]()
    lanes = boxes(fig)
    for arrow in artists(fig, FancyArrowPatch, "handed"):
        (at, y), (then, end) = arrow._posA_posB
        assert then >= at, (at, then)
        down = 1 if end < y else -1
        for x, lane in ((at, round(-y - down * HIGH / 2)), (then, round(-end + down * HIGH / 2))):
            assert any(box.get_x() <= x <= box.get_x() + box.get_width() for box in lanes[lane]), (name, lane, x)


def test_the_engine_thread_does_what_its_picture_says(monkeypatch):
    """The order of commands, step, text and delivery in `EngineThread._run`, against the order of the boxes."""
    calls = []
    for method in ("_run_commands", "_step", "_collect_updates", "_deliver_updates"):
        monkeypatch.setattr(EngineThread, method, lambda self, m=method: calls.append(m) or len(calls) < 5)
    thread = EngineThread.__new__(EngineThread)
    thread._handles = {object(): None}
    thread._changed, thread._commands, thread._error = threading.Condition(), [], None
    monkeypatch.setattr(EngineThread, "_fail", lambda self, handle, error: None)
    thread._run()
    assert calls[:4] == ["_run_commands", "_step", "_collect_updates", "_deliver_updates"]
    words = [text.replace("\n", " ").replace("com- ", "com") for text in texts(v.plot_serving_threads())]
    at = [words.index(word) for word in ("run commands", "schedule 8", "launch 8", "collect 7: waits", "update 7", "text 7",
                                         "deliver 7")]
    assert at == sorted(at)


def test_every_rank_is_told_the_same_and_both_answer():
    said = texts(v.plot_rank_processes())
    assert said.count("1") == said.count("3") == 2 and said.count("2") == 3
    assert said.count("read") == said.count("reply") == 2 and said.count("message") == 1
