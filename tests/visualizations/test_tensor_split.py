"""The picture of a split feed-forward network."""

import pytest
from matplotlib.patches import Rectangle

from visualizations import plot_tensor_split


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
