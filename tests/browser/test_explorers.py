"""The explorers in a real Chromium on a page without a kernel, as the report and the book show them."""

import functools
import time

import numpy as np
import pytest

from nanovllm import LLM
from nanovllm.fleet.simulation import Simulation
from nanovllm.sampling_params import SamplingParams
from tests.visualizations import samples
from visualizations import ParallelCostExplorer, RooflineExplorer, theme
from visualizations.explorers.block_table import BlockTableExplorer
from visualizations.explorers.fleet import FleetExplorer
from visualizations.explorers.graph_timeline import GraphTimelineExplorer
from visualizations.explorers.journey import JourneyExplorer
from visualizations.explorers.journey_record import record_journey
from visualizations.explorers.monitor import BatchMonitor
from visualizations.explorers.online_softmax import OnlineSoftmaxExplorer
from visualizations.explorers.paged_attention import PagedAttentionExplorer
from visualizations.explorers.sampler import SamplerExplorer
from visualizations.explorers.scheduler import SchedulerExplorer
from visualizations.explorers.speculation import RecordedSpeculation, SpeculationExplorer
from visualizations.explorers.tensor_record import watch_tensors
from visualizations.explorers.tensor_xray import TensorXRay
from visualizations.explorers.token_mask import RecordedMasks, TokenMaskExplorer

STEP = "() => +document.querySelector('.nvx-root').dataset.step"
SIDEWAYS = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
UNQUIET = """() => [...document.querySelectorAll('.nvx-root :is(button, input, select, textarea, [tabindex])')]
  .filter(node => !node.hasAttribute('data-lm-suppress-shortcuts')).map(node => node.outerHTML)"""
UNNAMED = """() => [...document.querySelectorAll('.nvx-root :is(button, input, select, canvas, [tabindex])')]
  .filter(node => !(node.getAttribute('aria-label') || node.textContent || node.labels?.length)).map(node => node.outerHTML)"""
# Parts of an explorer that lie over each other or stick out of it.
MISPLACED = """() => [...document.querySelectorAll('.nvx-root')].flatMap(root => {
  const edge = root.getBoundingClientRect();
  const parts = [...root.querySelectorAll('button, input, select, canvas, h3, h4, .nvx-caption, .nvx-chip')]
    .map(node => [node, node.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
  const out = parts.filter(([, box]) => box.left < edge.left - 1 || box.right > edge.right + 1);
  const over = parts.flatMap(([a, p], i) => parts.slice(i + 1).filter(([b, q]) => !a.contains(b)
    && Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1)
    .map(([b]) => [a, b]));
  return [...out, ...over].map(pair => pair.map(x => x.outerHTML?.slice(0, 120) ?? '').join(' / '));
})"""
# What a card says and does not show: cut off, or written over its edge.
CUT_OFF = """() => [...document.querySelectorAll('.nvx-card, .nvx-card > *')]
  .filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.outerHTML.slice(0, 200))"""


def run() -> Simulation:
    """Five requests in a cache that is too small for them: chunks, shared blocks, waiting and a preemption."""
    simulation = Simulation(num_blocks=12, block_size=4, max_num_batched_tokens=16, max_num_seqs=6)
    for at, question in enumerate(("Tell me about cats", "What is a good name for a boat ?", "Why does bread rise ?")):
        simulation.add(f"You are a helpful assistant . Answer kindly . {question}", 14, at=at)
    simulation.add(12, 6, at=4)
    simulation.add(30, 9, at=5)
    simulation.run()
    assert any(r.preempted for r in simulation.trace) and any(r.ref_counts for r in simulation.trace)
    return simulation


def scheduler_explorer() -> SchedulerExplorer:
    return SchedulerExplorer(run().trace, step=3)


def sampler_explorer() -> SamplerExplorer:
    rows = 4 * np.cos(np.arange(900).reshape(3, 300) ** 1.3) - np.arange(300) / 60
    return SamplerExplorer(rows, lambda i: f" word{i}", prompt_token_ids=[5, 6], output_token_ids=[1, 2, 3],
                           params=SamplingParams(temperature=0.8, top_k=20))


def block_table_explorer() -> BlockTableExplorer:
    return BlockTableExplorer(run(), step=4)


@functools.cache
def journey() -> dict:
    with LLM(kvcache_block_size=8, num_kvcache_blocks=24, max_num_batched_tokens=16) as llm:
        return record_journey(llm, "Once upon a time there was a fox who", SamplingParams(max_tokens=4, temperature=0))


def tensor_xray() -> TensorXRay:
    with LLM(kvcache_block_size=4, num_kvcache_blocks=64, max_num_batched_tokens=24) as llm, watch_tensors(llm) as steps:
        llm.generate(["Once upon a time there was a fox", "Once upon a time there was a hen in a house by the sea"],
                     SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
        return TensorXRay(steps, decode=lambda token: llm.tokenizer.decode([token]), step=1)


def graph_timeline() -> GraphTimelineExplorer:
    return GraphTimelineExplorer({"eager": (samples.profiled(False), 0), "captured": (samples.profiled(True), 0)}, step=60)


def journey_explorer() -> JourneyExplorer:
    return JourneyExplorer(journey(), step=3)


@functools.cache
def batch_monitor() -> BatchMonitor:
    """Six requests in a cache with room for fewer, then two more after a rest."""
    with LLM(kvcache_block_size=8, num_kvcache_blocks=16) as llm:
        monitor = BatchMonitor(llm)
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        for prompts in ([f"This is request number {i}" for i in range(6)], ["Again", "And again"]):
            for _ in llm.stream(prompts, params):
                time.sleep(0.004)
            time.sleep(0.5)
        monitor.refresh()
    return monitor


def fleet_explorer() -> FleetExplorer:
    return FleetExplorer(dict(zip(("round robin", "prefix aware"), samples.fleets())), step=30)


def online_softmax() -> OnlineSoftmaxExplorer:
    return OnlineSoftmaxExplorer([1.0, 0.3, -1, 0.8, 0.2, 1.9, 0.1, 0.5, 0, 1.2, -0.5, 0.3, 2.8, 1, 0.4, 2.0], 4, step=2)


def paged_attention() -> PagedAttentionExplorer:
    """A query that walks five blocks in no order, the last of them half full; two blocks are somebody else's."""
    draw = np.random.default_rng(5)
    keys, values = draw.normal(size=(2, 40, 8, 64))
    return PagedAttentionExplorer(draw.normal(size=64), keys, values, block_table=[16, 7, 31, 2, 11], length=36, scale=0.125,
                                  seq_id=3, num_prompt=20, owners={5: 4, 6: 4, 2: 3},
                                  words=[f" word number {i}" if i % 3 else "\n" for i in range(36)], step=2)


def token_mask() -> TokenMaskExplorer:
    """Masks that allow one token, some, and nearly all; words as long as tokens get."""
    scores = np.exp(4 * np.cos(np.arange(1200).reshape(4, 300) ** 1.3))
    allowed = np.arange(300) % np.array([[300], [40], [7], [1]]) == 0
    probabilities = (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
    return TokenMaskExplorer(RecordedMasks(probabilities, allowed, [0, 40, 14, 9]),
                             lambda i: f" word number {i}" if i % 3 else "\n", step=2)


def speculation() -> SpeculationExplorer:
    """Guesses of which all, some and none are kept, of tokens as long as they get."""
    p = np.exp(3 * np.cos(np.arange(1500).reshape(5, 300) ** 1.3)).astype(np.float32)
    p /= p.sum(-1, keepdims=True)
    steps = [{"drafts": [], "accepted": 0, "drawn": [4], "target": p[:1], "draft": None},
             {"drafts": [1, 2, 3, 7], "accepted": 4, "drawn": [1, 2, 3, 7, 8], "target": p, "draft": p[1:]},
             {"drafts": [1, 2, 3, 7], "accepted": 1, "drawn": [1, 5, 3, 7, 8], "target": p, "draft": p[1:]},
             {"drafts": [9, 2], "accepted": 0, "drawn": [6, 5, 3], "target": p[:3], "draft": p[:2]}]
    recorded = RecordedSpeculation([1, 2], [4, 1, 2, 3, 7, 8, 1, 5, 6], steps, 1.0)
    return SpeculationExplorer(recorded, lambda i: f" word number {i}" if i % 3 else "\n", step=2)


EXPLORERS = {"online_softmax": online_softmax, "paged_attention": paged_attention, "scheduler": scheduler_explorer,
             "sampler": sampler_explorer, "block_table": block_table_explorer,
             "journey": journey_explorer, "tensor_xray": tensor_xray,
             "fleet": fleet_explorer, "graph_timeline": graph_timeline, "parallel_cost": ParallelCostExplorer,
             "roofline": RooflineExplorer, "token_mask": token_mask, "monitor": batch_monitor,
             "speculation": speculation}
every_explorer = pytest.mark.parametrize("make", EXPLORERS.values(), ids=EXPLORERS)


@every_explorer
@pytest.mark.parametrize(("width", "mode"), [(700, "dark"), (1400, "light")])
def test_fits_its_width_in_its_colours_with_a_name_for_everything(make, show, width, mode):
    page = show(make(), width=width, mode=mode)
    assert page.locator(".nvx-root").get_attribute("data-mode") == mode
    assert page.evaluate(SIDEWAYS) is False
    assert page.evaluate(MISPLACED) == []
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(UNQUIET) == []
    assert page.evaluate(UNNAMED) == []


@pytest.mark.parametrize("width", [480, 560, 700])
def test_no_card_loses_what_it_says_on_a_narrow_page(show, width):
    """JupyterLab in a window of 700 pixels leaves an output some 560; every entry of every tensor is chosen in turn."""
    page = show(tensor_xray(), width=width)
    for canvas in ("Tensors with an entry per token", "Tensors with an entry per sequence"):
        page.get_by_role("img", name=canvas).click(position={"x": 150, "y": 60})
        for key in 4 * ["ArrowRight"] + 3 * ["ArrowDown"] + 9 * ["ArrowRight"]:
            page.keyboard.press(key)
            assert page.evaluate(CUT_OFF) == [] and page.evaluate(SIDEWAYS) is False
    page = show(block_table_explorer(), width=width)
    page.focus("canvas[tabindex]")
    for key in ["Shift+ArrowRight", "Shift+ArrowDown", "ArrowDown", ",", ".", "End", "."]:
        page.keyboard.press(key)
        assert page.evaluate(CUT_OFF) == [] and page.evaluate(SIDEWAYS) is False


@pytest.mark.parametrize("explorer", [SchedulerExplorer, BlockTableExplorer])
def test_a_large_cache_is_folded_where_nothing_uses_it(show, explorer):
    trace, *_ = samples.serve([[30 * i + j for j in range(8)] for i in range(1, 4)], max_tokens=12, num_blocks=2730)
    page = show(explorer(trace, step=3), width=1000)
    cache = page.get_by_label("The cache:")
    box = cache.bounding_box()
    assert box["height"] < 120
    seen = set()
    for x in range(8, int(box["width"]), 12):
        for y in range(8, int(box["height"]), 12):
            cache.hover(position={"x": x, "y": y})
            seen.add(page.inner_text(".nvx-tip"))
    used = {block for record in trace for block, state in enumerate(record.blocks) if state != "f"}
    shown = {int(words.split()[1]) for words in seen if words.startswith("Block ")}
    assert used <= shown and len(shown) < 60, (used, shown)
    [folded] = [words for words in seen if "stay free" in words]
    assert folded.startswith(f"Blocks {max(shown) + 1} to 2,729")


def test_a_budget_far_out_of_reach_leaves_the_step_visible(show):
    trace, *_ = samples.serve([[30 * i + j for j in range(8)] for i in range(1, 4)], max_tokens=12, budget=16384)
    page = show(SchedulerExplorer(trace, step=0), width=1000)
    middle = """() => { const bar = document.querySelector('.nvx-budget canvas'), at = bar.width * 0.02;
      return [...bar.getContext('2d').getImageData(at, bar.height / 5, 1, 1).data]; }"""
    dark = [round(255 * part) for part in theme.prompt_colour(0)]
    assert all(abs(a - b) < 3 for a, b in zip(page.evaluate(middle)[:3], dark, strict=True))
    still = SchedulerExplorer(trace).figure().axes[0].texts
    assert "a budget of 16,384" in " ".join(text.get_text() for text in still).replace("\n", " ")


def test_steps_plays_scrubs_and_takes_keys(show):
    page = show(scheduler_explorer())
    last = len(run().trace) - 1
    assert page.evaluate(STEP) == 3
    page.get_by_label("step forward").click()
    assert page.evaluate(STEP) == 4
    page.get_by_label("step back").click()
    page.get_by_label("step back").click()
    assert page.evaluate(STEP) == 2
    page.focus(".nvx-scrub")
    for key, step in (("ArrowRight", 3), ("ArrowLeft", 2), ("End", last), ("ArrowRight", last), ("Home", 0), ("ArrowLeft", 0),
                      ("PageDown", 10)):
        page.keyboard.press(key)
        assert page.evaluate(STEP) == step, key
    page.locator(".nvx-scrub").fill("5")
    assert page.evaluate(STEP) == 5
    page.get_by_label("steps per second").select_option("30")
    page.focus(".nvx-scrub")
    page.keyboard.press("Space")
    page.wait_for_function("() => +document.querySelector('.nvx-root').dataset.step > 8")
    page.keyboard.press("Space")
    stopped = page.evaluate(STEP)
    page.wait_for_timeout(150)
    assert page.evaluate(STEP) == stopped


def test_says_what_the_trace_says_at_every_step(show):
    simulation = run()
    page = show(SchedulerExplorer(simulation.trace))
    for step, record in enumerate(simulation.trace):
        page.locator(".nvx-scrub").fill(str(step))
        said = page.inner_text(".nvx-why")
        for item in record.scheduled:
            if item["phase"] == "prefill":
                assert item["reason"] in said
        for why in record.left_waiting.values():
            assert why in said
        assert said.count("is preempted") == len(record.preempted)
        assert f"{record.num_blocks_in_use} of 12 blocks held" in page.inner_text(".nvx-root")
        computed = record.num_prefill_tokens + record.num_decode_tokens
        assert f"computes {computed} of at most 16 tokens" in page.inner_text(".nvx-root .nvx-caption >> nth=1")


def test_a_click_in_the_chart_goes_to_the_step_and_a_second_chooses_the_sequence(show):
    page = show(scheduler_explorer())
    chart = page.get_by_label("Requests by steps")
    box = chart.bounding_box()
    chart.click(position={"x": box["width"] * 0.5, "y": 10})
    at = page.evaluate(STEP)
    assert 3 < at < len(run().trace) - 1
    chart.click(position={"x": box["width"] * 0.5, "y": 10})
    assert page.evaluate(STEP) == at
    assert "Sequence 0 is chosen" in page.locator("canvas").first.get_attribute("aria-label")
    page.keyboard.press("ArrowDown")
    assert "Sequence 1 is chosen" in page.locator("canvas").first.get_attribute("aria-label")
    page.keyboard.press("Escape")
    assert "Up and down choose" in page.locator("canvas").first.get_attribute("aria-label")


def test_follows_a_change_of_theme_and_of_width(show):
    page = show(scheduler_explorer(), width=1300, mode="light")
    wide = page.locator("canvas").first.bounding_box()["width"]
    light = page.screenshot()
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector(".nvx-root[data-mode=dark]")
    assert page.screenshot() != light
    page.set_viewport_size({"width": 720, "height": 900})
    page.wait_for_function("wide => document.querySelector('canvas').clientWidth < wide", arg=wide)
    assert page.evaluate(SIDEWAYS) is False and page.evaluate(MISPLACED) == []


def test_a_live_explorer_without_a_kernel_scrubs_and_says_why_it_cannot_be_driven(show):
    simulation = run()
    simulation.add(5, 3)  # so that a step past the last one recorded is there to be taken
    page = show(SchedulerExplorer(simulation))
    page.get_by_label("step forward").click()
    assert page.evaluate(STEP) == 1
    controls = page.locator(".nvx-live button, .nvx-live input")
    assert controls.count() >= 8 and page.locator(".nvx-live :enabled").count() == 0
    assert "open the notebook in JupyterLab" in page.inner_text(".nvx-dead")
    page.focus(".nvx-scrub")
    page.keyboard.press("End")
    page.get_by_label("step forward").click()
    page.wait_for_function("() => document.querySelector('.nvx-error').textContent.includes('No kernel runs here')")
    assert page.locator(".nvx-live :enabled").count() == 0


def test_two_explorers_on_a_page_move_apart(show):
    page = show(scheduler_explorer(), SchedulerExplorer(run().trace, step=9))
    page.get_by_label("step forward").first.click()
    steps = "() => [...document.querySelectorAll('.nvx-root')].map(root => +root.dataset.step)"
    assert page.evaluate(steps) == [4, 9]


def test_play_walks_the_block_table_to_the_answer(show):
    explorer = paged_attention()
    page = show(explorer, width=700)
    keys = np.concatenate([np.arange(block * 8, block * 8 + 8) for block in (16, 7, 31, 2, 11)])[:36]
    draw = np.random.default_rng(5)
    k, v = (part.reshape(-1, 64)[keys] for part in draw.normal(size=(2, 40, 8, 64)))
    scores = k @ draw.normal(size=64) * 0.125
    weights = np.exp(scores - scores.max())
    page.get_by_role("button", name="first block").click()
    assert page.locator(".nvx-card").first.inner_text().split("\n")[1] == "–"
    page.get_by_label("blocks per second", exact=True).select_option("30")
    page.get_by_role("button", name="play", exact=True).click()
    page.wait_for_function(f"({STEP})() === 5")
    assert "block 11" in page.locator(".nvx-card").first.inner_text()
    assert "That was the last block" in page.locator(".nvx-pa-says").inner_text()
    result = [float(number) for number in page.locator(".nvx-root").get_attribute("data-result").split()]
    assert np.allclose(result, weights @ v / weights.sum(), atol=1e-3)
