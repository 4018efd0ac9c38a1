"""SamplerExplorer in a real JupyterLab, over scores of the model that ships with the package."""

import pytest

from tests.browser.test_every_explorer_lab import through_its_paces
from tests.browser.test_explorers_lab import SETUP

SAMPLER = SETUP + """
from nanovllm import LLM, SamplingParams
from visualizations import SamplerExplorer, record_logits
params = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=6, seed=3, ignore_eos=True)
with LLM(num_kvcache_blocks=32) as llm:
    explorer = SamplerExplorer(record_logits(llm, "Once upon a time", params), llm.tokenizer.decode)
explorer"""
RESULT = "() => document.querySelector('.nvx-s-result').textContent"


@pytest.mark.timeout(300)
def test_the_sampler_is_stepped_played_resized_reopened_and_draws_what_the_engine_drew(lab, lab_page):
    page = through_its_paces(lab, lab_page, "sampler.ipynb", SAMPLER)
    page.keyboard.press("Home")
    for _ in range(6):
        assert page.evaluate(RESULT).endswith("So did the engine."), page.evaluate(RESULT)
        page.keyboard.press("ArrowRight")
    page.get_by_role("slider", name="temperature", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    assert "0.85" in page.inner_text(".nvx-s-sliders")
    page.get_by_role("button", name="+ 100").click()
    page.wait_for_function("() => document.querySelector('.nvx-s-race h4').textContent === 'The race of draw 101'")
