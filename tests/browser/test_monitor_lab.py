"""BatchMonitor in a real JupyterLab: the picture moves while the cell that generates is still running."""

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.browser.conftest import ROOT
from tests.browser.test_explorers import MISPLACED, STEP
from tests.browser.test_explorers_lab import no_trouble, reopen
from tests.notebooks.canonical import canonical, dumps

SHOW = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
from nanovllm import LLM, SamplingParams
from visualizations import BatchMonitor
llm = LLM(num_kvcache_blocks=64)
params = SamplingParams(temperature=0.8, max_tokens=300, ignore_eos=True, seed=1)
monitor = BatchMonitor(llm)
monitor"""
STREAM = """import time
for i, piece in llm.stream(["Tell me about a fox.", "Tell me about a hen."], params):
    time.sleep(0.01)
print("done")"""
MOVES = """() => new Promise((tell) => {
  const root = document.querySelector('.nvx-root'), seen = [];
  const timer = setInterval(() => {
    const lengths = [...root.querySelectorAll('.nvx-m-text')].map((node) => node.textContent.length);
    seen.push([root.dataset.live, +root.querySelector('.nvx-scrub').max, ...lengths]);
    if (seen.length === 12) { clearInterval(timer); tell(seen); }
  }, 150);
})"""


@pytest.mark.timeout(300)
def test_two_texts_stream_while_their_cell_runs(lab, lab_page):
    notebook = new_notebook(cells=[new_code_cell(SHOW), new_code_cell("'a pause'"), new_code_cell(STREAM)])
    (lab.folder / "monitor.ipynb").write_text(dumps(canonical(notebook)), encoding="utf-8")
    lab_page.open("monitor.ipynb")
    page = lab_page.page
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")  # not waiting for the end
    page.wait_for_selector(".nvx-root[data-live=true] .nvx-m-text >> nth=1", timeout=120_000)
    seen = page.evaluate(MOVES)
    assert lab_page.state()["cells"][-1]["busy"], "the run was over before anybody looked: nothing is shown of live updates"
    assert all(live == "true" for live, *_ in seen)
    looks, first, second = ([row[i] for row in seen] for i in (1, 2, 3))
    for growing in (looks, first, second):
        assert growing == sorted(growing) and len(set(growing)) >= 4, seen
    assert looks[-1] - looks[0] <= 20  # ten a second, over less than two seconds

    page.focus(".nvx-scrub")
    page.keyboard.press("Home")  # looking back, while it goes on
    assert page.inner_text(".nvx-m-lamp") == "looking back" and page.evaluate(STEP) == 0
    page.keyboard.press("End")
    page.wait_for_selector(".nvx-root[data-live=false]", timeout=90_000)
    page.wait_for_function("() => document.querySelector('.nvx-m-says').textContent.includes('2 finished')")
    assert page.locator(".nvx-m-lamp").inner_text() == "at rest"

    lab_page.change_theme("Dark")
    page.set_viewport_size({"width": 1000, "height": 1000})
    page.wait_for_function("() => !document.querySelector('.nvx-root').classList.contains('nvx-wide')")
    assert page.evaluate(MISPLACED) == []
    lab_page.change_theme("Light")
    texts = [text[-100:] for text in page.locator(".nvx-m-text").all_inner_texts()]  # how much fits depends on the width

    reopen(lab_page, "monitor.ipynb")  # the whole was packed when the engine came to rest
    assert [text[-100:] for text in page.locator(".nvx-m-text").all_inner_texts()] == texts
    page.focus(".nvx-scrub")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(STEP) == 1
    no_trouble(lab_page)
