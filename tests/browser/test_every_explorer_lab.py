"""Explorers with steps in a real JupyterLab: opened, scrubbed, played, resized, in the dark, and without their kernel."""

import pytest

from tests.browser.test_explorers import MISPLACED, STEP
from tests.browser.test_explorers_lab import CELLS, FOCUS_IS_INSIDE, SETUP, no_trouble, open_and_run, reopen

BLOCK_TABLE = SETUP + """
from visualizations import BlockTableExplorer
simulation = Simulation(num_blocks=12, block_size=4, max_num_batched_tokens=16)
for i in range(3):
    simulation.add(f"You are a helpful assistant . Answer kindly . Question {i}", 10, at=i)
simulation.run(9)
BlockTableExplorer(simulation)"""
TENSOR_XRAY = SETUP + """
from nanovllm import LLM, SamplingParams
from visualizations import TensorXRay, watch_tensors
with LLM(kvcache_block_size=4, num_kvcache_blocks=32, max_num_batched_tokens=16) as llm, watch_tensors(llm) as steps:
    llm.generate(["Once upon a time", "A dog"], SamplingParams(max_tokens=6, ignore_eos=True), use_tqdm=False)
    explorer = TensorXRay(steps, decode=lambda token: llm.tokenizer.decode([token]))
explorer"""
GRAPH_TIMELINE = SETUP + """
from nanovllm import LLM, SamplingParams
from visualizations import GraphTimelineExplorer
with LLM(num_kvcache_blocks=32) as llm, llm.trace(profile=True) as trace:
    llm.generate("Once upon a time", SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
GraphTimelineExplorer({"prefill": (trace, 0), "decode": (trace, 1)}, step=0)"""
JOURNEY = SETUP + """
from nanovllm import LLM, SamplingParams
from visualizations import JourneyExplorer
from visualizations.explorers.journey_record import record_journey
with LLM(kvcache_block_size=8, num_kvcache_blocks=24) as llm:
    journey = record_journey(llm, "Once upon a time", SamplingParams(max_tokens=3))
JourneyExplorer(journey)"""


FLEET = SETUP + """
from nanovllm.fleet.arrivals import Traffic
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.simulated_fleet import compare
from visualizations import FleetExplorer
chats = Traffic(rate=30, num_conversations=40, system_tokens=512, prompt_tokens=100, output_tokens=40)
turns, aware = compare(FleetConfig(router="round_robin"), chats, router="prefix_aware")
FleetExplorer({"round robin": turns, "prefix aware": aware})"""


def through_its_paces(lab, lab_page, name: str, source: str):
    """What every explorer with steps must do; ends on the reopened notebook."""
    page = open_and_run(lab, lab_page, name, source)
    page.focus(".nvx-scrub")
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft", "a", "b", "d", "d"):
        page.keyboard.press(key)
    assert page.evaluate(STEP) == 1 and page.evaluate(FOCUS_IS_INSIDE) and page.evaluate(CELLS) == 1
    page.get_by_label("s per second").select_option("30")
    page.focus(".nvx-scrub")
    page.keyboard.press("Space")
    page.wait_for_function("() => +document.querySelector('.nvx-root').dataset.step > 3")
    page.keyboard.press("Home")
    assert page.evaluate(STEP) == 0

    wide = page.locator(".nvx-root").bounding_box()["width"]
    lab_page.change_theme("Dark")
    page.set_viewport_size({"width": 1000, "height": 1000})
    page.wait_for_function("wide => document.querySelector('.nvx-root').clientWidth < wide - 200", arg=wide)
    assert page.evaluate(MISPLACED) == []
    lab_page.change_theme("Light")

    reopen(lab_page, name)
    page.focus(".nvx-scrub")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(STEP) == 1
    no_trouble(lab_page)
    return page


@pytest.mark.timeout(300)
@pytest.mark.parametrize("source", [BLOCK_TABLE, TENSOR_XRAY, GRAPH_TIMELINE, JOURNEY],
                         ids=["block_table", "tensor_xray", "graph_timeline", "journey"])
def test_is_stepped_played_resized_and_reopened(lab, lab_page, source, request):
    through_its_paces(lab, lab_page, f"{request.node.callspec.id}.ipynb", source)


@pytest.mark.timeout(300)
def test_the_fleets_reasons_keep_their_lines_under_jupyterlabs_own_styles(lab, lab_page):
    """JupyterLab makes every dt of an output a fifth as wide as its surroundings."""
    page = through_its_paces(lab, lab_page, "fleet.ipynb", FLEET)
    heights = page.evaluate("[...document.querySelectorAll('.nvx-fl-story dt')].map(e => e.scrollHeight)")
    assert len(heights) >= 12 and max(heights[:6]) < 40, heights


@pytest.mark.timeout(300)
def test_the_block_table_drives_a_live_simulation(lab, lab_page):
    page = open_and_run(lab, lab_page, "live_blocks.ipynb", BLOCK_TABLE)
    before = int(page.get_attribute(".nvx-scrub", "max"))
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_function("n => +document.querySelector('.nvx-scrub').max > n", arg=before)
    page.get_by_placeholder("a text, or a number of tokens").fill("You are a helpful assistant . Answer kindly . Why ?")
    page.get_by_role("button", name="Add request").click()
    page.get_by_role("button", name="Step", exact=True).click()
    page.wait_for_function("() => document.querySelector('.nvx-path').textContent.includes('sequence 3')")
    page.focus(".nvx-scrub")
    page.keyboard.press("Shift+Home")
    page.keyboard.press("End")
    page.keyboard.press("Shift+ArrowUp")
    assert page.evaluate(CELLS) == 1 and "block_table[" in page.inner_text(".nvx-path")
    no_trouble(lab_page)
