"""Every figure has a form for light pages and one for dark ones, and says in words what is written in it."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

import visualizations as v
from tests.notebooks.canonical import canonical_data
from tests.notebooks.compare import same_value
from tests.visualizations.samples import FIGURES
from visualizations import theme
from visualizations.both_modes import SAVED_FIGURE


def corner(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))[1, 1] / 255


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_dark_twin_with_the_same_words(name):
    fig = FIGURES[name]()
    assert fig.dark is not None and to_rgb(fig.dark.get_facecolor()) == to_rgb(theme.DARK.paper)
    fig.dark.draw_without_rendering()
    words = [t.get_text() for t in fig.dark.axes[0].texts]
    assert words == [t.get_text() for t in fig.axes[0].texts]


def test_what_a_notebook_is_given_and_what_it_keeps():
    fig = FIGURES["block_tables"]()
    data = fig._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain", "text/html", SAVED_FIGURE}
    assert np.allclose(corner(data["image/png"]), to_rgb(theme.LIGHT.paper), atol=0.02)
    assert np.allclose(corner(data[SAVED_FIGURE]["dark"]), to_rgb(theme.DARK.paper), atol=0.02)
    assert fig.axes[0].get_title(loc="left") in data[SAVED_FIGURE]["texts"]
    assert len(re.findall("<img", data["text/html"])) == 2 and "http" not in data["text/html"]
    assert set(canonical_data(data)) == set(data) - {"text/html"}


def test_on_given_axes_or_in_the_dark_it_is_drawn_once():
    fig, ax = plt.subplots()
    plt.close(fig)
    assert v.plot_work(3, 2, ax=ax) is fig
    with theme.using(theme.DARK):
        assert v.plot_work(3, 2).dark is None


def test_an_iterator_is_drawn_twice():
    fig = v.plot_rounds(iter([(0, 3), (3, 5)]), 5)
    assert len(fig.axes[0].collections) == len(fig.dark.axes[0].collections) > 0


def test_a_word_that_changed_is_seen_where_pixels_are_not():
    def saved(word):
        fig = v.plot_curves({"a": {1: 5, 2: 9}}, knob=f"number of {word}", outcome="o", title="T", caption="C.")
        return fig._repr_mimebundle_()
    first, second = saved("blocks"), saved("clocks")
    assert same_value("image/png", first["image/png"], second["image/png"])
    assert not same_value(SAVED_FIGURE, first[SAVED_FIGURE], second[SAVED_FIGURE])
    assert same_value(SAVED_FIGURE, first[SAVED_FIGURE], saved("blocks")[SAVED_FIGURE])
