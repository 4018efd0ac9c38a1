"""What the pictures of the sampler's race and of the engine's two lanes say, from hand-made data."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import Rectangle

from visualizations import plot_exponential_race, plot_overlap


def artists(fig, kind, prefix):
    return [a for a in fig.axes[0].findobj(kind) if (a.get_gid() or "").startswith(prefix)]


def texts(fig):
    return " | ".join(t.get_text().replace("\n", " ") for t in fig.axes[0].findobj(plt.Text) if t.get_text())


def test_the_first_to_arrive_is_drawn_and_those_who_wait_for_ever_are_not_shown():
    fig = plot_exponential_race([3.0, 0.5, float("inf"), 2.0], [0.6, 0.1, 0.0, 0.3], lambda i: f"t{i}")
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["'t1'", "'t3'", "'t0'"]
    (winner,) = artists(fig, Rectangle, "winner")
    assert winner.get_width() == 0.5 and len(artists(fig, Rectangle, "runner")) == 2
    assert "p = 0.100  drawn" in texts(fig) and "2 likelier than the winner came later" in texts(fig)


def test_a_device_that_waits_shows_a_gap_and_one_that_does_not_shows_none():
    waits = [("host", 0, 0, 3), ("device", 0, 3, 10), ("host", 1, 10, 13), ("device", 1, 13, 20)]
    never = [("host", 0, 0, 3), ("device", 0, 3, 10), ("host", 1, 3, 6), ("device", 1, 10, 17)]
    fig = plot_overlap({"in turn": waits, "ahead": never})
    (gap,) = artists(fig, Rectangle, "gap")
    assert (gap.get_x(), gap.get_width()) == (10, 3)
    assert "in turn, 20 ms, device busy 70%" in texts(fig) and f"ahead, 17 ms, device busy {14 / 17:.0%}" in texts(fig)
    assert artists(fig, Rectangle, "device-1")[1].get_width() == pytest.approx(7)
