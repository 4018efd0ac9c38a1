"""The pictures of a step's tensors, slots, operations and parts, read back from their artists."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

import visualizations as v
from tests.visualizations.test_figures import artists, caption, texts
from visualizations import theme


def test_an_entry_has_its_owners_colour_and_padding_none():
    fig = v.plot_step_tensors({"input_ids": [7, 8, 9], "positions": [4, 0, 0]}, [1, 2, None], light=(1,))
    assert [t for t in texts(fig) if t.isdigit()] == ["7", "8", "9", "4", "0", "0"]
    decode, prompt = artists(fig, Rectangle, "input_ids-1") + artists(fig, Rectangle, "input_ids-2")
    assert np.allclose(decode.get_facecolor()[:3], theme.decode_colour(1))
    assert np.allclose(prompt.get_facecolor()[:3], theme.prompt_colour(2))
    assert [p.get_hatch() for p in artists(fig, Rectangle, "positions-nobody")] == [theme.WASTE_HATCH]
    own = v.plot_step_tensors({"rows": [0, 1], "borders": [0, 1, 2]}, {"rows": [0, 1], "borders": [0, 1, None]})
    assert len(artists(own, Rectangle, "borders-")) == 3
    with pytest.raises(ValueError, match="entries of 'input_ids'=1: must be 2"):
        v.plot_step_tensors({"input_ids": [7]}, [0, 1])


def test_each_token_goes_to_its_slot_and_minus_one_nowhere():
    fig = v.plot_slot_scatter([9, 2, -1], 4, owners=[0, 1, 2], held={8: 0})
    assert {a.get_gid() for a in artists(fig, Rectangle, "written-")} == {"written-9", "written-2"}
    (token,) = artists(fig, Rectangle, "token-0")
    (line,) = artists(fig, plt.Line2D, "line-9")
    (slot,) = artists(fig, Rectangle, "written-9")
    for x, box in zip(line.get_xdata(), (token, slot), strict=True):
        assert x == pytest.approx(box.get_x() + box.get_width() / 2)
    assert len(artists(fig, plt.Line2D, "dropped-2")) == 1 and len(artists(fig, Rectangle, "held-")) == 1
    assert "2 keys go to 2 blocks" in caption(fig) and "1 of 3 is not stored" in caption(fig)
    with pytest.raises(ValueError, match="slots of blocks"):
        v.plot_slot_scatter([9], 4, blocks=[0, 1])


@pytest.mark.parametrize(("tokens", "blocks"), [(9, 4), (11, 9), (20, 7), (32, 12)])
def test_the_number_of_a_token_stays_inside_of_its_box(tokens, blocks):
    fig = v.plot_slot_scatter(range(tokens), 8, blocks=range(blocks))
    fig.draw_without_rendering()
    boxes = {a.get_gid(): a.get_window_extent() for a in artists(fig, Rectangle, "token-")}
    numbers = [text for text in fig.axes[0].texts if text.get_position()[1] == 0]
    assert len(numbers) == tokens
    for i, text in enumerate(numbers):
        assert text.get_window_extent().width <= boxes[f"token-{i}"].width + 0.5


def test_bars_side_by_side_say_who_leads():
    works = {"many": {"ours": 80.0, "theirs": 64.0}, "one": {"ours": 35.0, "theirs": 41.5}, "alone": {"ours": 3.0}}
    fig = v.plot_side_by_side(works, unit="%", limit=100, words={"one": {"theirs": "1.49 ms"}})
    assert [bar.get_width() for bar in fig.axes[0].patches] == [80.0, 64.0, 35.0, 41.5, 3.0]
    assert "ours, ahead in 1 of 2" in caption(fig) and "theirs  1.49 ms" in texts(fig) and "ours  80" in texts(fig)
    assert "ahead in 1 of 2" in caption(v.plot_side_by_side(works, unit="ms", better="less"))
    assert "ours alone" in caption(v.plot_side_by_side({"alone": {"ours": 3.0}}, unit="%"))
    with pytest.raises(ValueError, match="at most limit=70"):
        v.plot_side_by_side(works, unit="%", limit=70)


def test_numbers_of_different_orders_stand_side_by_side_as_factors():
    works = {"one": {"ours": 2.0, "theirs": 8.0}, "many": {"ours": 30.0, "theirs": 300.0}}
    fig = v.plot_side_by_side(works, unit="µs", log=True)
    assert [(bar.get_x(), bar.get_width()) for bar in fig.axes[0].patches] == [(1, 1), (1, 7), (1, 29), (1, 299)]
    assert fig.axes[0].get_xscale() == "log" and fig.axes[0].get_xlim()[0] == 1 and "theirs  300" in texts(fig)
    assert "equal lengths are equal factors" in fig.axes[0].get_xlabel()
    for bad in ({"ours": 0.0}, {"ours": -1.0}):
        with pytest.raises(ValueError, match="above 0"):
            v.plot_side_by_side({"one": bad}, unit="µs", log=True)
    with pytest.raises(ValueError, match="no limit"):
        v.plot_side_by_side({"one": {"ours": 1.0}}, unit="µs", log=True, limit=2)
    power_of_ten = v.plot_side_by_side({"one": {"ours": 0.1, "theirs": 3.0}}, unit="µs", log=True)
    assert min(bar.get_width() for bar in artists(power_of_ten, Rectangle, "ours-")) > 0


def test_an_operation_stands_to_the_right_of_what_it_needs():
    fig = v.plot_operations([("x", "x", ()), ("y", "exp", ("x",)), ("z", "x + y", ("x", "y"))])
    given, first, second = artists(fig, FancyBboxPatch, "given-x") + artists(fig, FancyBboxPatch, "operation-")
    assert given.get_x() == first.get_x() < second.get_x() and "2 operations from 1 tensors" in caption(fig)
    assert given.get_y() + given.get_height() < first.get_y()
    with pytest.raises(ValueError, match="inputs of 'y'"):
        v.plot_operations([("y", "exp", ("x",))])
    with pytest.raises(ValueError, match="at least one with inputs"):
        v.plot_operations([("x", "x", ())])


def test_results_that_are_read_later_go_over_the_boxes_in_lanes_that_do_not_meet():
    chain = [("x", "x", ()), *((f"y{i}", "exp", ("x" if i == 0 else f"y{i - 1}",)) for i in range(5)),
             ("a", "+", ("y4", "y1")), ("b", "+", ("a", "y0")), ("c", "+", ("b", "y4")), ("d", "+", ("c", "y0"))]
    fig = v.plot_operations(chain)
    kept = {line.get_gid(): (max(line.get_ydata()), min(line.get_xdata()), max(line.get_xdata()))
            for line in artists(fig, plt.Line2D, "kept-")}
    assert set(kept) == {"kept-y1-a", "kept-y0-b", "kept-y4-c", "kept-y0-d"} and "Orange" in caption(fig)
    spans = list(kept.values())
    assert all(a[0] != b[0] or a[2] < b[1] or b[2] < a[1] for a, b in combinations(spans, 2))
    # two arguments of one operation stand side by side, and neither in the other's way
    two = v.plot_operations([("x", "x", ()), ("r", "r", ()), ("y", "+", ("x", "r")), ("w", "w", ()), ("z", "*", ("y", "w"))])
    boxes = [(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in artists(two, FancyBboxPatch, "given-")]
    assert len(boxes) == 3 and all(abs(a[0] - b[0]) >= a[2] or abs(a[1] - b[1]) >= a[3] for a, b in combinations(boxes, 2))


def test_an_automaton_has_a_circle_per_state_and_an_arrow_per_pair():
    fig = v.plot_automaton([{"a": 1, "b": 1, "c": 1, " ": 1, "x": 2}, {"z": 1, "y": 0}, {}], {1}, marked={0})
    begin, second, third = artists(fig, Circle, "state-")
    assert begin.center[0] < second.center[0] == third.center[0] and begin.get_facecolor() != second.get_facecolor()
    assert [ring.get_gid() for ring in artists(fig, Circle, "end-")] == ["end-1"]
    assert {"0", "1", "2", "blank, a–c", "x", "y", "z"} <= set(texts(fig)) and "two rings" in caption(fig)
    # a state that no text leads to is left out
    assert len(artists(v.plot_automaton([{}, {}], ()), Circle, "state-")) == 1
    with pytest.raises(ValueError, match="moves of state 1"):
        v.plot_automaton([{"a": 1}, {"b": 2}], {1})
    with pytest.raises(ValueError, match="states"):
        v.plot_automaton([], ())


def test_the_parts_of_a_step_add_up_to_it():
    steps = {"theirs": {"attention": 5.0, "GPU waits for the host": 1.0}, "ours": {"attention": 4.0}}
    fig = v.plot_step_parts(steps, floors={"ours": 3.5})
    bars = [bar for bar in fig.axes[0].patches if bar.get_width()]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 5), (5, 1), (0, 4)] and bars[1].get_hatch()
    assert "17% of a step (theirs)" in caption(fig) and "6.00 ms" in texts(fig)
    assert "less than 1%" in caption(v.plot_step_parts({"ours": {"attention": 4.0, "GPU waits for the host": 0.003}}))
    (floor,) = artists(fig, plt.Line2D, "floor-ours")
    assert list(floor.get_xdata()) == [3.5, 3.5]
    with pytest.raises(ValueError, match="milliseconds=-1"):
        v.plot_step_parts({"a": {"attention": -1.0}})


def test_a_step_whose_parts_overlap_ends_within_its_bar():
    steps = {"ours": {"attention": 5.0, "norms": 1.0}, "theirs": {"attention": 7.0}}
    fig = v.plot_step_parts(steps, done={"ours": 5.5})
    (line,) = artists(fig, plt.Line2D, "done-")
    assert list(line.get_xdata()) == [5.5, 5.5] and {"5.50 ms", "7.00 ms"} <= set(texts(fig)) and "side by side" in caption(fig)
    assert "side by side" not in caption(v.plot_step_parts(steps))
    with pytest.raises(ValueError, match="at most the sum of its parts, 6"):
        v.plot_step_parts(steps, done={"ours": 6.5})
