"""What holds for every figure: the rules of the visual language, and how it looked when somebody last looked."""

from io import BytesIO

import matplotlib
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from PIL import Image, ImageChops

import visualizations
from tests.visualizations import baseline
from tests.visualizations.samples import FIGURES
from visualizations import theme

UNITS = {
    "ablation": ("tokens/s (more is better)", ""), "batch_composition": ("step", "tokens computed"),
    "attention_mask": ("keys in the cache, all sequences end to end (ticks: where each begins)",
                       "query tokens (ticks: cu_seqlens_q)"),
    "by_position": ("", "difference"), "curves": ("token budget", "milliseconds"),
    "routing": ("", "expert"), "rounds": ("place in the text", "round"), "stretches": ("token slots of the KV cache", ""),
    "cache_occupancy": ("step", "blocks"), "checkpoint_file": ("place in the file (MB)", ""),
    "exponential_race": ("time of arrival: an exponential random time of rate p", ""),
    "exponents": ("exponent e (a weight of about 2 to the power of e)", "weights"), "heat_maps": ("key", ""),
    "part_shares": ("share of all parameters", ""), "places": ("place in the row", "position in the text"),
    "overlap": ("milliseconds", ""),
    "fleet": ("seconds since the run began", "replica"),
    "found_tokens": ("prompt tokens", ""), "fragmentation": ("token slots of the KV cache", ""),
    "gpu_timeline": ("milliseconds since the step began", ""), "latencies": ("milliseconds", "share of them this short"),
    "ladder": ("tokens/s (each mark ten times the one before)", ""),
    "life_of_request": ("step", "tokens"), "load_test": ("seconds since the run began: planned arrival", "milliseconds"),
    "memory_budget": ("memory of the device (GiB)", ""),
    "acceptance": ("place of the draft in its step", "share that was kept"), "next_token": ("probability", ""),
    "online_softmax": ("key", ""), "quantized_block": ("number in the block", "weight"),
    "padding_waste": ("bucket: captured batch size (sequences)", "rows computed"),
    "parity": ("largest difference from transformers (dashed: tolerance 10⁻⁴)", ""), "request_timeline": ("step", ""),
    "roofline": ("arithmetic intensity (FLOP per byte moved)", "TFLOP/s"),
    "sampling_filters": ("tokens, the most likely first", ""), "side_by_side": ("% of the limit (more is better)", ""),
    "lines": ("token", "tokens left"), "bits": ("", "token id"),
    "wheel": ("probability, added up in the order of the token ids", ""),
    "step_parts": ("milliseconds", ""), "work": ("position of the token", "round"),
    "work_shares": ("keys read, one after the other", "8 programs at once"),
}
MAPS = {"automaton", "block_tables", "draft_check", "head_groups", "journey", "matrices", "memory_hierarchy", "name_map",
        "one_query",
        "operations", "prefix_tree", "rank_processes", "reuse_order", "ring", "rope", "serving_threads", "shape_flow",
        "slot_scatter", "step_tensors", "tensor_split"}
# In them place has no unit.
every_figure = pytest.mark.parametrize("name", FIGURES)


def test_every_public_figure_has_an_example():
    public = {name.removeprefix("plot_") for name in visualizations.__all__ if name.startswith("plot_")}
    assert public == set(FIGURES) and UNITS.keys() | MAPS == set(FIGURES)


@every_figure
def test_keeps_the_rules(name):
    fig = FIGURES[name]()
    assert plt.get_fignums() == []  # nothing stays open behind the reader's back
    (ax,) = fig.axes
    (caption,) = [t for t in ax.texts if t.get_gid() == "caption"]
    assert ax.get_title(loc="left") and caption.get_text().endswith((".", ":")) and caption.get_text().count("\n") <= 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == UNITS.get(name, ("", ""))
    assert fig.get_figwidth() <= 12.5 and fig.get_figheight() <= 6.5  # inches at 100 dpi: fits a 13" screen
    fig.draw_without_rendering()
    page = fig.bbox
    ticks = [t for t in ax.get_yticklabels() if min(ax.get_ylim()) <= t.get_position()[1] <= max(ax.get_ylim())]
    for text in [*ax.texts, *ticks, ax._left_title, ax.xaxis.label, ax.yaxis.label]:
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= -2 and box.x1 <= page.x1 + 2 and box.y0 >= -2 and box.y1 <= page.y1 + 2, text.get_text()
            assert text.get_fontsize() >= 7.5


@every_figure
def test_draws_on_given_axes(name):
    fig, ax = plt.subplots()
    try:
        assert FIGURES[name](ax=ax) is fig
        assert ax.get_title(loc="left")
    finally:
        plt.close(fig)


@every_figure
@pytest.mark.parametrize("mode", baseline.MODES)
def test_looks_as_it_did(name, mode):
    """Somebody looked at these. After a wanted change: `python -m tests.visualizations.baseline NAME`, and look again."""
    figure, picture = baseline.drawn(name, mode)
    assert to_rgb(figure.get_facecolor()) == to_rgb(baseline.MODES[mode].paper)
    assert theme.mode() is theme.LIGHT
    assert not (difference := baseline.compare(picture, Image.open(baseline.path(name, mode)))), difference


def test_is_the_same_picture_twice():
    def pixels():
        out = BytesIO()
        FIGURES["block_tables"]().savefig(out, format="rgba")
        return out.getvalue()
    assert pixels() == pixels()


def test_comparing_forgives_a_pixel_and_finds_a_missing_bar():
    picture = baseline.render("ablation", "light")
    assert not baseline.compare(ImageChops.offset(picture, 1, 0), picture)
    without = picture.copy()
    bar = [i for i, colour in enumerate(picture.get_flattened_data()) if colour == picture.getpixel((80, 135))]
    for i in bar[:len(bar) // 6]:
        without.putpixel((i % picture.width, i // picture.width), picture.getpixel((picture.width - 2, 2)))
    assert "differs" in baseline.compare(without, picture)
    assert "pixels" in baseline.compare(picture.resize((picture.width + 40, picture.height)), picture)
    assert baseline.compare(baseline.render("ablation", "dark"), picture)
