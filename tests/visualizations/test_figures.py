"""What the figures say, read back from their artists."""

import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle

from visualizations import (
    plot_batch_composition,
    plot_block_tables,
    plot_cache_occupancy,
    plot_journey,
    plot_next_token,
    plot_request_timeline,
    theme,
)
from visualizations.journey import NAMES

FIGURES = {
    "batch": plot_batch_composition,
    "blocks": plot_block_tables,
    "cache": plot_cache_occupancy,
    "timeline": plot_request_timeline,
    "journey": lambda trace, ax=None: plot_journey(ax=ax),
    "next": lambda trace, ax=None: plot_next_token([0.5, 0.3, 0.2], "abc".__getitem__, drawn=1, ax=ax),
}
every_figure = pytest.mark.parametrize("plot", FIGURES.values(), ids=FIGURES)


def artists(fig, kind, prefix=""):
    return [a for a in fig.axes[0].findobj(kind) if (a.get_gid() or "").startswith(prefix)]


def texts(fig):
    return [t.get_text() for t in fig.axes[0].findobj(plt.Text) if t.get_text()]


@every_figure
def test_has_a_title_and_a_one_line_caption(plot, shared_trace):
    ax = plot(shared_trace).axes[0]
    (caption,) = [t for t in ax.texts if t.get_gid() == "caption"]
    assert ax.get_title(loc="left")
    assert caption.get_text() and "\n" not in caption.get_text()


@every_figure
def test_nothing_written_lies_outside_the_figure(plot, shared_trace):
    fig = plot(shared_trace)
    fig.draw_without_rendering()
    page = fig.bbox
    ax = fig.axes[0]
    ticks = [t for t in ax.get_yticklabels() if ax.get_ylim()[0] <= t.get_position()[1] <= ax.get_ylim()[1]]
    for text in [*ax.texts, *ticks, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]:
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= -2 and box.x1 <= page.x1 + 2 and box.y0 >= -2 and box.y1 <= page.y1 + 2, text.get_text()


@every_figure
def test_draws_on_given_axes_and_leaves_no_figure_open(plot, shared_trace):
    fig, ax = plt.subplots()
    try:
        assert plot(shared_trace, ax=ax) is fig
        assert ax.get_title(loc="left")
    finally:
        plt.close(fig)
    plot(shared_trace)
    assert plt.get_fignums() == []


@every_figure
def test_is_the_same_picture_twice(plot, shared_trace):
    def pixels():
        out = BytesIO()
        plot(shared_trace).savefig(out, format="rgba")
        return out.getvalue()
    assert pixels() == pixels()


@every_figure
def test_dark_mode_changes_paper_and_ink(plot, shared_trace):
    with theme.using(theme.DARK):
        fig = plot(shared_trace)
    assert to_rgb(fig.get_facecolor()) == to_rgb(theme.DARK.paper)
    assert theme.mode() is theme.LIGHT
    for text in fig.axes[0].texts + [fig.axes[0].title]:
        if text.get_gid() == "caption":
            assert to_rgb(text.get_color()) == to_rgb(theme.DARK.muted)


def test_axes_carry_their_units(shared_trace):
    labels = {name: (FIGURES[name](shared_trace).axes[0].get_xlabel(), FIGURES[name](shared_trace).axes[0].get_ylabel())
              for name in ("batch", "cache", "timeline", "next")}
    assert labels == {"batch": ("step", "tokens computed"), "cache": ("step", "blocks"), "timeline": ("step", ""),
                      "next": ("probability", "")}


def test_batch_bars_add_up_to_what_ran_and_stay_below_the_budget(shared_trace):
    fig = plot_batch_composition(shared_trace)
    for phase in ("prefill", "decode"):
        drawn = sum(bar.get_height() for bar in artists(fig, Rectangle, phase))
        assert drawn == sum(getattr(r, f"num_{phase}_tokens") for r in shared_trace)
    (line,) = artists(fig, plt.Line2D, "budget")
    assert line.get_ydata()[0] == shared_trace.meta["token_budget"]
    assert max(bar.get_y() + bar.get_height() for bar in artists(fig, Rectangle, "prefill")) <= line.get_ydata()[0]


def test_prompt_is_the_dark_shade_and_decode_the_light_one(shared_trace):
    fig = plot_batch_composition(shared_trace)
    for seq_id in range(3):
        for phase in ("prefill", "decode"):
            colours = {bar.get_facecolor()[:3] for bar in artists(fig, Rectangle, f"{phase}-{seq_id}")}
            assert colours == {tuple(theme.phase_colour(seq_id, phase))}


def test_timeline_has_a_cell_for_each_scheduled_step_and_a_dot_for_each_end(shared_trace):
    fig = plot_request_timeline(shared_trace)
    assert len(artists(fig, Rectangle, "prefill-")) + len(artists(fig, Rectangle, "decode-")) == sum(
        len(r.scheduled) for r in shared_trace)
    assert len(artists(fig, plt.Line2D, "finished-")) == 3
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["sequence 0", "sequence 1", "sequence 2"]
    assert not artists(fig, plt.Line2D, "preempted-")


def test_timeline_strikes_each_preemption_and_shows_the_wait_after_it(preempted_trace):
    fig = plot_request_timeline(preempted_trace)
    struck = [(r.step, i) for r in preempted_trace for i in r.preempted]
    assert len(artists(fig, plt.Line2D, "preempted-")) == len(struck) > 0
    step, seq_id = struck[0]
    assert any(line.get_xdata()[0] > step for line in artists(fig, plt.Line2D, f"waiting-{seq_id}"))


def test_shared_blocks_are_hatched_and_counted(shared_trace):
    record = max(shared_trace, key=lambda r: sum(r.ref_counts.values()))
    assert set(record.ref_counts.values()) == {3}
    fig = plot_block_tables(shared_trace, record)
    hatched = [p for p in artists(fig, FancyBboxPatch) if p.get_hatch()]
    appearances = sum(record.ref_counts.values()) + len(record.ref_counts)  # in each table, and once below
    assert len(hatched) == appearances
    assert texts(fig).count("×3") == appearances


def test_block_numbers_are_those_of_the_tables_and_of_the_whole_cache(shared_trace):
    record = shared_trace[2]
    numbers = [int(t) for t in texts(plot_block_tables(shared_trace, record)) if t.isdigit()]
    assert sorted(numbers) == sorted([*range(32), *(b for table in record.block_tables.values() for b in table)])
    only_tables = [int(t) for t in texts(plot_block_tables(shared_trace, record, physical=False)) if t.isdigit()]
    assert sorted(only_tables) == sorted(b for table in record.block_tables.values() for b in table)


def test_a_block_is_filled_as_far_as_its_tokens_go(shared_trace):
    record = shared_trace[0]  # 12 of 14 prompt tokens: three full blocks of sequence 0
    (seq_id,) = record.block_tables
    half = replace(record, context_lens={seq_id: 10})

    def area(r):
        return sum(p.get_width() for p in artists(plot_block_tables(shared_trace, r, physical=False), Rectangle)
                   if p.get_facecolor()[:3] == theme.prompt_colour(seq_id))
    assert area(half) / area(record) == pytest.approx(10 / 12)


def test_finished_sequences_leave_outlined_blocks(shared_trace):
    last = shared_trace[-1]
    assert not last.block_tables and "c" in last.blocks
    outlined = [p for p in artists(plot_block_tables(shared_trace), FancyBboxPatch) if p.get_linewidth() == 1.3]
    assert len(outlined) == last.blocks.count("c")


def test_occupancy_stacks_to_the_whole_cache(shared_trace):
    fig = plot_cache_occupancy(shared_trace)
    handles, labels = fig.axes[0].get_legend_handles_labels()
    assert labels == ["shared", "in use", "cached, free to take", "free"]
    heights = [h.get_data() for h in handles]
    assert np.array_equal(heights[0].values, [r.blocks.count("s") for r in shared_trace])
    assert np.array_equal(heights[1].values, [r.num_blocks_in_use for r in shared_trace])
    assert set(heights[-1].values) == {32}


def test_next_token_is_sorted_and_shows_the_drawn_one_even_from_the_tail():
    probabilities = [0.01] * 50 + [0.3, 0.2]
    fig = plot_next_token(probabilities, lambda i: f"t{i}", drawn=40, top=3)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["'t50'", "'t51'", "'t0'", "'t40'"]
    (drawn,) = artists(fig, Rectangle, "drawn")
    assert drawn.get_width() == pytest.approx(0.01)
    assert "0.010  drawn" in texts(fig)


def test_labels_of_tokens_may_hold_anything():
    names = ["$x^", "\n" * 40, "<|im_end|>"]
    plot_next_token([0.5, 0.3, 0.2], names.__getitem__).draw_without_rendering()


def test_the_journey_names_every_room_and_lights_one():
    assert set(NAMES) < set(texts(plot_journey()))
    fig = plot_journey("sampler")
    lit = [p.get_gid() for p in artists(fig, FancyBboxPatch, "room-") if p.get_facecolor()[:3] == theme.prompt_colour(0)]
    assert lit == ["room-sampler"]
    with pytest.raises(ValueError, match="kitchen"):
        plot_journey("kitchen")


def test_a_loaded_trace_draws_like_the_recorded_one(shared_trace, tmp_path):
    shared_trace.save(tmp_path / "trace.json")
    loaded = type(shared_trace).load(tmp_path / "trace.json")
    for name in ("batch", "blocks", "cache", "timeline"):
        assert texts(FIGURES[name](loaded)) == texts(FIGURES[name](shared_trace))


def test_the_engine_knows_nothing_of_pictures_and_pictures_load_no_torch():
    script = ("import sys, visualizations; assert 'torch' not in sys.modules; "
              "import nanovllm.engine.trace; assert not any(m.startswith('visualizations') for m in "
              "vars(nanovllm.engine.trace))")
    subprocess.run([sys.executable, "-c", script], check=True)
