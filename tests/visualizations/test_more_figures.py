"""What the figures of measurements and of live objects say, read back from their artists."""

from itertools import pairwise

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle

import visualizations as v
from chapters.exercises.timelines import queue
from nanovllm.layers.sampler import SamplingBatch, filter_logits
from nanovllm.sampling_params import SamplingParams
from nanovllm.tracing.trace import Trace
from tests.visualizations import samples
from tests.visualizations.test_figures import artists, caption, texts
from visualizations import theme
from visualizations.figures.online_softmax import TALL


def test_prefix_tree_has_a_node_a_block_and_a_branch_where_prompts_part():
    manager, sequences = samples._two_levels()
    fig = v.plot_prefix_tree(manager, sequences)
    blocks = {b for seq in sequences for b in manager.find_cached_prefix(seq)}
    numbers = [int(t) for t in texts(fig) if t.isdigit()]
    assert sorted(numbers) == sorted(blocks) and len(blocks) == 8
    edges = {tuple(map(int, line.get_gid().split("-")[1:])) for line in artists(fig, plt.Line2D, "edge-")}
    tables = [manager.find_cached_prefix(seq) for seq in sequences]
    assert edges == {pair for table in tables for pair in pairwise(table)}
    assert texts(fig).count("×2") == 2 == len([p for p in artists(fig, FancyBboxPatch) if p.get_hatch()])
    assert "13 blocks of prompts are 8 blocks of memory" in caption(fig)


@pytest.mark.parametrize("blocks", [6, 8, 30])
def test_a_deep_prefix_tree_fits_the_page_and_says_what_it_leaves_out(blocks):
    head = list(range(4 * (blocks - 1)))
    _, manager, sequences = samples.serve([head + [200 + i] * 4 for i in range(2)], max_tokens=2, num_blocks=64)
    fig = v.plot_prefix_tree(manager, sequences, decode=lambda ids: " ".join(samples.WORDS[i % 16] for i in ids))
    assert fig.get_figwidth() <= theme.WIDEST
    assert f"{2 * blocks} blocks of prompts are {blocks + 1} blocks of memory" in caption(fig)
    drawn = len([t for t in texts(fig) if t.isdigit()])
    left_out = [int(t.split()[0]) for t in texts(fig) if t.endswith(" more")]
    assert drawn + sum(left_out) == blocks + 1 and bool(left_out) == (blocks == 30)
    fig.draw_without_rendering()
    boxes = [t.get_window_extent() for t in fig.axes[0].texts if t.get_gid() in ("text", "leaf")]
    assert boxes and all(box.x1 <= fig.bbox.x1 + 2 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_prefix_tree_of_an_empty_cache_says_so():
    _, manager, sequences = samples.shared()
    manager.reset_prefix_cache()
    assert "Nothing is cached" in caption(v.plot_prefix_tree(manager, sequences))


def test_fragmentation_draws_every_slot_once():
    lengths, size, longest = [10, 33, 5], 16, 64
    fig = v.plot_fragmentation(lengths, block_size=size, max_len=longest)
    for row, slots in ((1, 3 * longest), (0, 16 + 48 + 16)):
        assert sum(p.get_width() for p in artists(fig, Rectangle, f"waste-{row}")) == slots
        assert sum(p.get_width() for p in artists(fig, Rectangle, f"used-{row}")) == sum(lengths)
    assert "75% wasted" in texts(fig) and "40% wasted" in texts(fig) and "blocks hold 7 requests" in caption(fig)
    with pytest.raises(ValueError, match="max_len=8"):
        v.plot_fragmentation([9], block_size=4, max_len=8)


def test_attention_mask_is_causal_in_each_sequence_and_empty_between():
    starts, contexts = [0, 1, 4], [3, 5]
    fig = v.plot_attention_mask(starts, contexts)
    picture = next(i for i in fig.axes[0].images).get_array()
    empty = picture[0, -1]
    read = ~np.all(np.isclose(picture, empty), axis=-1)
    assert ["".join("#" if r else "." for r in row) for row in read] == ["###.....", "...###..", "...####.", "...#####"]
    assert "15 of 32 pairs" in caption(fig)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["0", "1", "4"]
    assert np.allclose(picture[0, 2], theme.prompt_colour(0)) and np.allclose(picture[0, 0], theme.decode_colour(0))
    with pytest.raises(ValueError, match="1 to context_lens"):
        v.plot_attention_mask([0, 4], [3])
    with pytest.raises(ValueError, match="one more than sequences"):
        v.plot_attention_mask([0, 4], [3, 3])


def test_rope_hands_stand_at_the_angles_of_the_layer():
    from nanovllm.layers.rotary_embedding import RotaryEmbedding
    layer = RotaryEmbedding(16, 8, 100.0)
    fig = v.plot_rope(16, 100.0, positions=[0, 3, 7], pairs=[0, 5])
    for place, pair in enumerate((0, 5)):
        for position in (0, 3, 7):
            (hand,) = artists(fig, plt.Line2D, f"hand-{pair}-{position}")
            x, y = hand.get_xdata()[1] - place * 2.7, hand.get_ydata()[1]
            assert (x, y) == pytest.approx((layer.cos[position, pair].item(), layer.sin[position, pair].item()), abs=1e-5)
    with pytest.raises(ValueError, match="0 to 7"):
        v.plot_rope(16, 100.0, pairs=[8])


def test_parity_marks_what_is_above_the_tolerance():
    fig = v.plot_parity({"a": 0.0, "b": 1e-6, "c": 3e-3, "d": 2e-3}, tolerance=1e-4)
    assert len(artists(fig, Rectangle, "equal")) == 1 and len(artists(fig, Rectangle, "different")) == 2
    assert "exactly equal" in texts(fig) and "first layer that differs is c" in caption(fig)
    assert {"10⁻⁶", "0.003", "0.002"} <= set(texts(fig))
    far = v.plot_parity({"a": 11.2, "b": 618.0, "c": 2.13e-4, "d": 3.4e7, "e": 9.96e-5}, tolerance=1e-2)
    assert {"11", "620", "2.1 · 10⁻⁴", "3.4 · 10⁷", "10⁻⁴"} <= set(texts(far))
    bar = artists(fig, Rectangle, "equal")[0]
    assert bar.get_x() + bar.get_width() == pytest.approx(1e-6)
    with pytest.raises(ValueError, match="differences"):
        v.plot_parity({"a": float("nan")}, tolerance=1e-4)


def test_stages_are_those_of_the_sampler():
    torch = pytest.importorskip("torch")
    logits = torch.linspace(3, -3, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    params = SamplingParams(temperature=0.6, top_k=20, top_p=0.8, min_p=0.05)
    stages = v.sampling_stages(logits, params)
    assert list(stages) == ["the model's own", "temperature 0.6", "top_k 20", "top_p 0.8", "min_p 0.05"]
    filters = SamplingBatch.from_params([params], [0], [0]).filters
    at_once = filter_logits(logits[None] / 0.6, filters).softmax(-1)[0].numpy()
    assert np.allclose(stages["min_p 0.05"], at_once) and all(p.sum() == pytest.approx(1) for p in stages.values())
    with pytest.raises(ValueError, match="temperature"):
        v.sampling_stages(logits, SamplingParams(temperature=0))


def test_filters_cross_out_what_they_drop_once():
    stages = {"own": [0.5, 0.3, 0.15, 0.05], "top_k 3": [0.5, 0.3, 0.2, 0], "top_p 0.7": [0.6, 0.4, 0, 0]}
    fig = v.plot_sampling_filters(stages)
    assert [len(artists(fig, Rectangle, f"kept-{row}")) for row in range(3)] == [4, 3, 2]
    assert [len(artists(fig, plt.Line2D, f"dropped-{row}")) for row in range(3)] == [0, 1, 1]
    assert len(artists(fig, plt.Line2D, "gone-2")) == 1
    heights = [bar.get_height() for bar in artists(fig, Rectangle, "kept-")]
    assert np.allclose(np.array(heights) / heights[0], np.array([0.5, 0.3, 0.15, 0.05, 0.5, 0.3, 0.2, 0.6, 0.4]) / 0.5)


def test_the_timeline_of_a_step_shows_each_launch_and_kernel():
    fig = v.plot_gpu_timeline({"eager": (samples.profiled(False), 0), "captured": (samples.profiled(True), 0)})
    counts = {c.get_gid(): len(c.get_paths()) for c in fig.axes[0].collections}
    assert counts == {"launches-eager": 40, "GPU-eager": 40, "launches-captured": 1, "GPU-captured": 40}
    assert "eager: 40 kernels, busy 26% of 0.20 ms" in caption(fig)
    with pytest.raises(ValueError, match="profile=True"):
        v.plot_gpu_timeline({"plain": (samples.shared()[0], 0)})


def test_the_timeline_can_show_the_middle_of_each_step_alone():
    runs = {"eager": (samples.profiled(False), 0), "captured": (samples.profiled(True), 0)}
    fig = v.plot_gpu_timeline(runs, within=3e-5)
    counts = {c.get_gid(): len(c.get_paths()) for c in fig.axes[0].collections}
    assert 0 < counts["GPU-eager"] < counts["GPU-captured"] < 40 and counts["launches-captured"] == 0
    assert "no launch in this time" in texts(fig) and "of 0.03 ms" in caption(fig)
    assert fig.axes[0].get_xlim()[1] == pytest.approx(0.03)
    for boxes in fig.axes[0].collections:
        for box in boxes.get_paths():
            assert box.vertices[:, 0].min() >= -1e-9 and box.vertices[:, 0].max() <= 0.03 + 1e-9
    with pytest.raises(ValueError, match="within=0"):
        v.plot_gpu_timeline(runs, within=0)


def test_kernels_far_shorter_than_a_pixel_are_seen():
    """An edge of paper around such a box leaves nothing of it."""
    few, many = (v.plot_gpu_timeline({"one": (queue([2.0] * n, 60.0), 0)}) for n in (4, 400))
    edges = [to_hex(fig.axes[0].collections[1].get_edgecolor()[0]) for fig in (few, many)]
    assert edges[0] == to_hex(theme.mode().paper) and edges[1] == to_hex(theme.HUES[0])


def test_online_softmax_shows_the_weights_relative_to_the_highest_so_far():
    fig = v.plot_online_softmax([0.0, 1.0, 2.0], 2, names=["block 7", "block 2"])
    heights = [bar.get_height() / TALL for bar in artists(fig, Rectangle, "new-0")]
    assert heights == pytest.approx([np.exp(-1), 1.0])
    assert [bar.get_height() / TALL for bar in artists(fig, Rectangle, "old-1")] == pytest.approx([np.exp(-2), np.exp(-1)])
    # What was rescaled is outlined as it was, and the dashed line is the highest score of every tile so far.
    assert [bar.get_height() / TALL for bar in artists(fig, Rectangle, "before-1")] == pytest.approx([np.exp(-1), 1.0])
    assert list(artists(fig, plt.Line2D, "highest")[0].get_ydata() / TALL) == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["scores", "block 7", "block 2"]
    assert "rose 1 time;" in caption(fig) and any("rescale × 0.37   highest 2.00   total 1.50" in t for t in texts(fig))
    assert not artists(v.plot_online_softmax([2.0, 1.0], 1), Rectangle, "before-1")  # no higher score: nothing is rescaled
    assert "“b” 53%" in texts(v.plot_online_softmax([0.0, 1.0, 0.0, -1.0], 2, words=["a", " b", "c", "d"]))
    for scores, names, match in (([0.0, float("-inf")], None, "finite"), ([1.0, 2.0], ["one"], r"len\(names\)=1")):
        with pytest.raises(ValueError, match=match):
            v.plot_online_softmax(scores, 1, names=names)


def test_work_shares_read_every_key_once_in_either_cut():
    fig = v.plot_work_shares([10, 3, 3], 4)
    for kind, longest in (("whole", 10), ("cut", 4)):
        bars = artists(fig, Rectangle, f"{kind}-")
        assert sum(bar.get_width() for bar in bars) == 16
        assert max(bar.get_x() + bar.get_width() for bar in bars) == longest
    assert "2.5 times sooner" in caption(fig)
    with pytest.raises(ValueError, match="context_lens"):
        v.plot_work_shares([0, 3], 4)


def test_padding_counts_rows():
    fig = v.plot_padding_waste([2, 4], [1, 2, 3, 4, 4, 9])
    assert [bar.get_height() for bar in artists(fig, Rectangle, "real")] == [3, 11, 9]
    assert [bar.get_height() for bar in artists(fig, Rectangle, "padding")] == [1, 1, 0]
    assert "8.0% of all in 6 steps" in caption(fig) and fig.axes[0].get_xticklabels()[-1].get_text() == "eager"


def test_memory_adds_up_to_the_device():
    gib = 1 << 30
    fig = v.plot_memory_budget({"a": {"weights": gib, "KV cache": 5 * gib}}, 8 * gib, bytes_per_token=gib // 100)
    assert sum(bar.get_width() for bar in artists(fig, Rectangle) if bar.get_gid()) == pytest.approx(8)
    assert "5.0 GiB: 500 tokens" in texts(fig)
    (cache,) = artists(fig, Rectangle, "KV cache")
    assert cache.get_facecolor()[:3] == theme.prompt_colour(0)
    with pytest.raises(ValueError, match="bytes of 'a'"):
        v.plot_memory_budget({"a": {"weights": 9 * gib}}, 8 * gib)


def test_roofline_places_points_and_refuses_impossible_ones():
    point = v.Measured("a", flops=1e12, bytes=1e12, seconds=2.0)
    fig = v.plot_roofline([point], peak_flops=10e12, bandwidth=1e12)
    (mark,) = artists(fig, plt.Line2D, "point-a")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (1.0, 0.5) and "a: 50%" in texts(fig)
    assert (fig.axes[0].get_xscale(), fig.axes[0].get_yscale()) == ("log", "log")
    with pytest.raises(ValueError, match="at most the roof"):
        v.plot_roofline([v.Measured("b", 1e12, 1e12, 0.5)], peak_flops=10e12, bandwidth=1e12)


def test_latencies_of_a_trace():
    trace = samples.preempted()
    found = v.trace_latencies(trace)
    drawn = {i: [r.time + r.duration for r in trace if i in r.tokens] for i in range(3)}
    assert found["time to first token"] == pytest.approx([drawn[i][0] - 0.001 * i for i in range(3)])
    assert sorted(found["between tokens"]) == pytest.approx(sorted(np.concatenate([np.diff(drawn[i]) for i in range(3)])))
    fig = v.plot_latencies(found)
    (dot,) = artists(fig, plt.Line2D, "p50-time to first token")
    assert dot.get_xdata()[0] == pytest.approx(1e3 * np.median(found["time to first token"]))
    with pytest.raises(ValueError, match="at least one number"):
        v.plot_latencies(v.trace_latencies(Trace()))


@pytest.mark.parametrize(("one", "other"), [(0.0112, 0.0164), (0.0164, 0.0112), (0.011, 0.012), (0.010, 0.040)])
def test_labels_of_latencies_that_lie_close_stand_apart(one, other):
    fig = v.plot_latencies({"one": [one] * 50, "other": [other] * 50 + [0.131]})
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts if text.get_text().endswith(" ms")]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1:])


def test_a_load_test_shows_each_request_twice_and_failures_and_limits_once():
    columns = {"arrival": np.array([0.0, 1.0, 2.0]), "ttft": np.array([0.1, 0.2, 1.5]), "latency": np.array([1.0, 1.4, 3.0])}
    fig = v.plot_load_test(columns, failed=[0.5], limits={"ttft": 150, "itl": 20})
    points = {gid: artists(fig, PathCollection, gid)[0].get_offsets() for gid in ("ttft", "e2el", "failed")}
    assert points["ttft"].tolist() == [[0, 100], [1, 200], [2, 1500]] and points["e2el"][:, 1].tolist() == [1000, 1400, 3000]
    low, high = fig.axes[0].get_ylim()
    assert points["failed"][:, 0].tolist() == [0.5] and 3000 < points["failed"][0, 1] < high and low < 100
    (limit,) = artists(fig, plt.Line2D, "limit-")  # the longest gap of a request stands on no axis here
    assert set(limit.get_ydata()) == {150} and "limit, first token: 150 ms" in texts(fig)
    assert caption(fig).startswith("Median to the first token 200 ms, p99 1.47 s; to the last 1.4 s, p99 2.97 s.")
    with pytest.raises(ValueError, match="at least one that was answered"):
        v.plot_load_test({name: np.array([]) for name in columns}, failed=[1])


def test_ablation_shows_medians_ranges_and_ratios():
    fig = v.plot_ablation({"all": [90, 100, 130], "without": 50.0}, unit="tokens/s")
    assert [bar.get_width() for bar in fig.axes[0].patches] == [100, 50]
    assert "50  ×0.50" in texts(fig) and "largest loss: without, ×0.50" in caption(fig)
    (line,) = artists(fig, plt.Line2D, "range-all")
    assert line.get_xdata().tolist() == [90, 130]
    assert "loss" not in caption(v.plot_ablation({"all": 10, "other": 5}, unit="ms", better="less"))
    with pytest.raises(ValueError, match="baseline='none'"):
        v.plot_ablation({"all": 1}, unit="ms", baseline="none")


def test_dark_figures_write_in_light_ink():
    with theme.using(theme.DARK):
        fig = v.plot_roofline([], peak_flops=1e12, bandwidth=1e12)
    assert to_rgb(artists(fig, plt.Line2D, "roof")[0].get_color()) == to_rgb(theme.DARK.ink)
