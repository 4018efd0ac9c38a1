"""The pictures of differences by position, of rounds, stretches and knobs, read back from their artists."""

import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib.collections import PatchCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

import visualizations as v
from tests.visualizations.test_figures import artists, caption, texts


def squares(fig, kind):
    (found,) = [c for c in fig.axes[0].findobj(PatchCollection) if c.get_gid() == kind]
    return len(found.get_paths())


def test_bars_begin_where_two_texts_begin_to_differ():
    fig = v.plot_by_position([0, 1e-7, 0.5, 0.2], tolerance=1e-5, tokens=["a", " b", "\n", "d"])
    assert [a.get_gid() for a in artists(fig, Rectangle, "different-")] == ["different-2", "different-3"]
    assert texts(fig).count("=") == 2 and len(fig.axes[0].patches) == 2  # what is equal has no bar: a bar's height would lie
    assert caption(fig).startswith("Equal before position 2") and {"·b", "\\n"} <= set(texts(fig))
    assert caption(v.plot_by_position([0, 0], tolerance=1e-5)) == "Equal at every position, up to rounding."
    assert "·me\n·a" in texts(v.plot_by_position([1, 0], tolerance=0.1, tokens=[(" me", " a"), "c"]))
    assert "2 of 3 positions, first at 0" in caption(v.plot_by_position([1, 0, 1], tolerance=0.1))
    with pytest.raises(ValueError, match="tokens=1: must be 2"):
        v.plot_by_position([0, 0], tolerance=1, tokens=["a"])


def test_a_hole_in_the_prompt_is_dotted_and_a_preemption_drops_the_cache():
    fig = v.plot_rounds([(0, 3), (5, 6)], 5)
    assert (squares(fig, "prefill"), squares(fig, "decode"), squares(fig, "cached"), squares(fig, "skipped")) == (3, 1, 3, 2)
    assert "2 tokens that were never fed; the model takes the one behind them for position 3" in caption(fig)
    whole = v.plot_rounds([(0, 3), (3, 5), (5, 6), None, (0, 6), (6, 7)], 5)
    assert squares(whole, "skipped") == 0 and squares(whole, "cached") == 3 + 5 + 6
    assert len(artists(whole, Rectangle, "preempted-3")) == 1 and "once more after a preemption" in caption(whole)
    with pytest.raises(ValueError, match="rounds"):
        v.plot_rounds([(4, 4)], 5)


def test_free_room_counts_and_so_does_its_longest_piece():
    fig = v.plot_stretches({"full": [(0, 0, 40, 10), (1, 40, 60, 60)], "left": [(1, 40, 50, 50)]}, 100)
    assert "50 slots are free, and the longest piece of them is 40" in caption(fig)
    assert [a.get_width() for a in artists(fig, Rectangle, "used-0")] == [10, 60]
    with pytest.raises(ValueError, match="stretch of 1"):
        v.plot_stretches({"clash": [(0, 0, 40, 10), (1, 30, 10, 10)]}, 100)


def test_a_curve_has_its_points_and_its_name_and_names_keep_apart():
    tried = v.plot_curves({"a": {15: 5, 16: 6, 20: 9, 64: 9}}, at_settings=True, knob="k", outcome="o", title="T", caption="C.")
    tried.draw_without_rendering()
    assert [t.get_text() for t in tried.axes[0].get_xticklabels()] == ["15", "20", "64"]  # 16 is too near to 15
    fig = v.plot_curves({"a": {1: 5, 2: 9}, "b": {1: 4, 2: 9}}, knob="k", outcome="o", title="T", caption="C.")
    (line,) = artists(fig, Line2D, "a")
    assert list(line.get_ydata()) == [5, 9]
    levelled = v.plot_curves({"a": {1: 5, 2: 9}}, level=9, knob="k", outcome="o", title="T", caption="C.")
    assert max(artists(levelled, Line2D, "level")[0].get_xdata()) == 2  # it strikes through no name
    low, high = sorted(t.xy[1] for t in fig.axes[0].texts if t.get_text() in ("a", "b"))
    assert high - low >= 0.5
    with pytest.raises(ValueError, match="curves"):
        v.plot_curves({"a": {}}, knob="k", outcome="o", title="T", caption="C.")


def test_on_a_log_axis_curves_of_very_different_height_both_show_their_slope():
    curves = {"scores": {256: 4.0, 512: 16.0, 1024: 64.0}, "keys": {256: 0.5, 512: 1.0, 1024: 2.0}}
    words = dict(knob="tokens", outcome="MiB", title="Two curves", caption="One is steeper.")
    (ax,) = v.plot_curves(curves, log=True, log_outcome=True, **words).axes
    assert ax.get_yscale() == "log" and ax.get_ylim()[0] < 0.5 and ax.get_ylim()[1] > 64
    with pytest.raises(ValueError, match="smallest outcome=0: must be above 0 on a log axis"):
        v.plot_curves({"a": {1: 0}}, log_outcome=True, **words)


def test_a_long_caption_takes_two_lines_and_the_figure_grows_by_one():
    words = dict(knob="x", outcome="y", title="A title")
    short = v.plot_curves({"a": {1: 1}}, caption="One thing to see.", **words)
    long = v.plot_curves({"a": {1: 1}}, caption="One thing to see, which takes so many words to say that they find no "
                         "room beside each other on a page of 700 pixels.", **words)
    captions = [next(t for t in fig.axes[0].texts if t.get_gid() == "caption").get_text() for fig in (short, long)]
    assert [caption.count("\n") for caption in captions] == [0, 1]
    assert max(map(len, captions[1].split("\n"))) < 1.2 * min(map(len, captions[1].split("\n")))  # no word alone
    assert long.get_figheight() > short.get_figheight() and long.get_figwidth() == short.get_figwidth() <= 7.8
