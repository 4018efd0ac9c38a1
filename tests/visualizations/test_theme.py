"""Colours that mean something must be told apart, by everybody."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

import visualizations as v
from visualizations import theme

# Viénot, Brettel and Mollon 1999, on linear RGB: how the two common kinds of colour blindness see.
DEUTERANOPIA = np.array([[0.29275, 0.70725, -0.02978], [0.29275, 0.70725, 0.02978], [-0.02234, 0.02234, 1.0]]).T
PROTANOPIA = np.array([[0.11238, 0.11238, 0.00401], [0.88762, 0.88762, -0.00401], [0.0, 0.0, 1.0]])


def linear(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB, D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a, b):
    """The WCAG ratio, 1 to 21."""
    light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("sight", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["all cones", "deuteranopia", "protanopia"])
def test_the_first_four_sequences_are_told_apart(sight):
    seen = [lab(linear(theme.sequence_colour(i)) @ sight) for i in range(4)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


@pytest.mark.parametrize("seq_id", range(len(theme.HUES)))
def test_prompt_and_decode_are_one_hue_in_two_shades(seq_id):
    dark, light = (lab(linear(c(seq_id)))[0] for c in (theme.prompt_colour, theme.decode_colour))
    assert light - dark > 20


@pytest.mark.parametrize("seq_id", range(len(theme.HUES)))
@pytest.mark.parametrize("shade", [theme.prompt_colour, theme.decode_colour])
def test_numbers_can_be_read_on_every_colour(seq_id, shade):
    assert contrast(theme.text_on(shade(seq_id)), shade(seq_id)) > 3


@pytest.mark.parametrize("mode", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_text_can_be_read_on_paper(mode):
    assert contrast(mode.ink, mode.paper) > 7
    assert contrast(mode.muted, mode.paper) > 4.5
    assert contrast(mode.muted, mode.free) > 4.5  # a free block's number


def test_colours_repeat_after_the_last():
    assert theme.sequence_colour(len(theme.HUES)) == theme.sequence_colour(0)
    assert len(set(theme.HUES)) == len(theme.HUES)


def stays_on_the_page(fig, artist):
    box, page = artist.get_window_extent(), fig.bbox
    return box.x0 >= -2 and box.x1 <= page.x1 + 2 and box.y0 >= -2 and box.y1 <= page.y1 + 2


def test_a_long_title_and_a_caption_beside_long_labels_are_broken_into_lines():
    work = "256 requests, 100 to 1024 in and out"
    title = "Decode attention, recorded on some card, on some day, at a commit that has a long name, too"
    fig = v.plot_side_by_side({work: {"one of them": 80.0, "another": 64.0}}, unit="% of the limit", limit=100, title=title)
    fig.draw_without_rendering()
    (ax,) = fig.axes
    drawn, (caption,) = ax._left_title, [t for t in ax.texts if t.get_gid() == "caption"]
    assert drawn.get_text().count("\n") == 1 and stays_on_the_page(fig, drawn) and stays_on_the_page(fig, caption)
    assert drawn.get_window_extent().y0 > caption.get_window_extent().y1 - 1  # neither lies on the other


def test_a_price_in_a_label_is_measured_and_not_read_as_a_formula():
    fig = v.plot_side_by_side({"$1 to $2": {"us": 1.0}, "a $ and $ x_": {"us": 2.0}}, unit="$", first="us")
    fig.draw_without_rendering()
    assert stays_on_the_page(fig, fig.axes[0]._left_title)


def test_a_legend_takes_as_many_rows_as_it_needs():
    parts = {name: 1.0 for name in ("attention", "matrix products", "the draw", "everything else", "what the host adds",
                                    "GPU waits for the host")}
    fig = v.plot_step_parts({"this engine": parts})
    for _ in range(2):  # the layout settles in the second pass; saving a figure makes both
        fig.draw_without_rendering()
    legend = fig.axes[0].get_legend()
    assert len(legend.get_texts()) == 6 and all(stays_on_the_page(fig, text) for text in legend.get_texts())


@pytest.mark.parametrize(("prompt", "filled"), [(0, 1 / 16), (15 / 16, 1), (0.5, 0.51), (1 / 256, 2 / 256), (0.25, 0.75),
                                                (0, 1), (1, 1)])
def test_a_single_token_of_a_block_can_be_seen(prompt, filled):
    _, ax = theme.canvas(None, 2, 2)
    theme.draw_block(ax, 0, 0, 7, state="u", colour="#0000ff", light="#00ff00", prompt=prompt, filled=filled, size=1)
    found = {artist.get_facecolor()[:3]: artist.get_width() for artist in ax.patches if isinstance(artist, Rectangle)}
    wide = [found.get((0, 0, 1), 0), found.get((0, 1, 0), 0)]
    wide.append(1 - sum(wide))
    for part, drawn in zip((prompt, filled - prompt, 1 - filled), wide, strict=True):
        assert drawn == pytest.approx(0) if part == 0 else drawn >= theme.THINNEST - 1e-9
    if min(part for part in (prompt, filled - prompt, 1 - filled) if part) >= theme.THINNEST:
        assert wide[:2] == pytest.approx([prompt, filled - prompt])
