"""The picture of a split feed-forward network."""

import pytest
from matplotlib.patches import Rectangle

from visualizations import plot_tensor_split, theme


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_lane_a_rank_and_one_sum(size):
    ax = plot_tensor_split(1024, 3072, size).axes[0]
    boxes = {a.get_gid(): a for a in ax.findobj(Rectangle) if a.get_gid()}
    for kind in ("x", "first", "between", "second", "partial"):
        assert sum(name.startswith(f"{kind}-") for name in boxes) == size
    assert "sum" in boxes
    words = " ".join(t.get_text() for t in ax.texts)
    assert f"[n, {3072 // size}]" in words and f"{3072 - 3072 // size:,} to 3,071" in words


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="intermediate_size=100: must be divisible by size=3"):
        plot_tensor_split(64, 100, 3)


@pytest.mark.parametrize("words", [{}, {"names": ("q, k, v of its heads", "output"), "between": "attention over its own keys"}])
def test_fits_the_page_and_no_word_lies_on_another(words):
    fig = plot_tensor_split(1024, 3072, 2, **words)
    assert fig.get_figwidth() <= theme.WIDEST
    fig.draw_without_rendering()
    drawn = [(t.get_text(), t.get_window_extent()) for t in fig.axes[0].texts]
    assert not [(a, b) for i, (a, box) in enumerate(drawn) for b, other in drawn[:i] if box.overlaps(other)]
    assert all(box.x0 >= -2 and box.x1 <= fig.bbox.x1 + 2 for _, box in drawn)
