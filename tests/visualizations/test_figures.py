"""What the figures of a trace say, read back from their artists."""

import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from visualizations import (
    plot_batch_composition,
    plot_block_tables,
    plot_cache_occupancy,
    plot_journey,
    plot_life_of_request,
    plot_next_token,
    plot_request_timeline,
    plot_work,
    theme,
)
from visualizations.figures.journey import NAMES


def artists(fig, kind, prefix=""):
    return [a for a in fig.axes[0].findobj(kind) if (a.get_gid() or "").startswith(prefix)]


def caption(fig):
    """The sentence under the title, in one line."""
    return next(t.get_text() for t in fig.axes[0].texts if t.get_gid() == "caption").replace("\n", " ")


def texts(fig):
    return [t.get_text() for t in fig.axes[0].findobj(plt.Text) if t.get_text()]


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
    generated = {t.get_gid(): t.get_text() for t in artists(fig, plt.Text, "generated-")}
    assert generated == {f"generated-{i}": str(sum(i in r.tokens for r in shared_trace)) for i in range(3)}
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


def test_a_reserve_lies_on_what_is_held_and_ends_with_the_cache(shared_trace):
    held = np.array([r.num_blocks_in_use for r in shared_trace])
    reserve = [3] * (len(held) - 1) + [100]
    fig = plot_cache_occupancy(shared_trace, reserve=reserve)
    (drawn,) = [patch for patch in fig.axes[0].patches if patch.get_gid() == "reserve"]
    assert np.array_equal(drawn.get_data().baseline, held)
    assert np.array_equal(drawn.get_data().values, [*(held[:-1] + 3), 32])
    with pytest.raises(ValueError, match=r"len\(reserve\)=1: must be"):
        plot_cache_occupancy(shared_trace, reserve=[3])
    step = shared_trace[4].step
    marked = plot_cache_occupancy(shared_trace, marks={step: "a user leaves"})
    (mark,) = [t for t in marked.axes[0].texts if t.get_gid() == f"mark-{step}"]
    assert mark.get_text() == "a user leaves" and mark.xy == (step - 0.5, shared_trace[4].num_blocks_in_use)
    with pytest.raises(ValueError, match="a marked step=999"):
        plot_cache_occupancy(shared_trace, marks={999: "nothing"})


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
    assert set(NAMES) < {text.replace("\n", " ") for text in texts(plot_journey())}
    fig = plot_journey("sampler")
    lit = [p.get_gid() for p in artists(fig, FancyBboxPatch, "room-") if p.get_facecolor()[:3] == theme.prompt_colour(0)]
    assert lit == ["room-sampler"]
    with pytest.raises(ValueError, match="kitchen"):
        plot_journey("kitchen")


def test_a_loaded_trace_draws_like_the_recorded_one(shared_trace, tmp_path):
    shared_trace.save(tmp_path / "run.trace")
    loaded = type(shared_trace).load(tmp_path / "run.trace")
    for plot in (plot_batch_composition, plot_block_tables, plot_cache_occupancy, plot_request_timeline):
        assert texts(plot(loaded)) == texts(plot(shared_trace))


def test_the_engine_knows_nothing_of_pictures_and_pictures_load_no_torch():
    script = ("import sys, visualizations; assert 'torch' not in sys.modules; "
              "import nanovllm.tracing.trace; assert not any(m.startswith('visualizations') for m in "
              "vars(nanovllm.tracing.trace))")
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_work_triangle_counts_what_it_draws():
    fig = plot_work(6, 4)
    drawn = {c.get_gid(): len(c.get_paths()) for c in fig.axes[0].collections}
    assert drawn["prefill-naive"] + drawn["decode-naive"] == 6 + 7 + 8 + 9
    assert drawn["prefill-cached"] + drawn["decode-cached"] == 6 + 3
    assert "with a cache: 9 tokens" in texts(fig)


def test_the_life_bar_shows_what_each_step_computed(shared_trace):
    seq_id = min(shared_trace.meta["prompts"])
    fig = plot_life_of_request(shared_trace, seq_id)
    computed = [s["num_tokens"] for r in shared_trace for s in r.scheduled if s["seq_id"] == seq_id]
    bars = [b for b in artists(fig, Rectangle) if b.get_gid() in ("prefill", "decode")]
    assert [b.get_height() for b in bars] == computed
