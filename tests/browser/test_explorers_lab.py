"""The explorers in a real JupyterLab: driven through a kernel, and opened again without it."""

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.browser.conftest import ROOT
from tests.browser.lab_page import OPEN_SECONDS
from tests.browser.test_explorers import MISPLACED, STEP
from tests.notebooks.canonical import canonical, dumps

RUN_SECONDS = 120
SETUP = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom nanovllm.fleet.simulation import Simulation"
SCHEDULER = SETUP + """
from visualizations.explorers.scheduler import SchedulerExplorer
simulation = Simulation(num_blocks=18, block_size=4, max_num_batched_tokens=16)
explorer = SchedulerExplorer(simulation)
explorer"""

# The command toggles a setting of the whole server, which an earlier test may have turned on.
KEEP_WIDGET_STATE = """async () => {
  const name = '@jupyter-widgets/jupyterlab-manager:saveWidgetState', {commands} = jupyterapp;
  if (!commands.isToggled(name)) await commands.execute(name);
  while (!commands.isToggled(name)) await new Promise(done => setTimeout(done, 20));
}"""

CELLS = "() => jupyterapp.shell.currentWidget.content.widgets.length"
FOCUS_IS_INSIDE = "() => !!document.activeElement.closest('.nvx-root')"


def open_and_run(lab, lab_page, name, *sources):
    """A notebook of these cells, run; returns Playwright's page, its cells checked."""
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    (lab.folder / name).write_text(dumps(canonical(notebook)), encoding="utf-8")
    lab_page.open(name)
    cells = lab_page.run_all(RUN_SECONDS)
    assert not any(cell["errors"] for cell in cells)
    lab_page.page.wait_for_selector(".nvx-root[data-ready]", timeout=OPEN_SECONDS * 1000)
    return lab_page.page


def no_trouble(lab_page):
    assert lab_page.broken_widgets() == [] and lab_page.console_errors == [] and lab_page.outside == []


def reopen(lab_page, name):
    """Save with the widgets' state and open the file again beside a new kernel, in which nothing has run.

    JupyterLab's widget manager shows no saved widget without any kernel; a page without one is test_explorers.py's.
    """
    page = lab_page.page
    page.evaluate(KEEP_WIDGET_STATE)
    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
    lab_page.shut_down_kernel()
    page.goto("about:blank")
    lab_page.open(name)
    page.wait_for_selector(".nvx-root[data-ready]", timeout=OPEN_SECONDS * 1000)


@pytest.mark.timeout(300)
def test_the_scheduler_is_driven_from_the_notebook(lab, lab_page):
    page = open_and_run(lab, lab_page, "scheduler.ipynb", SCHEDULER)
    prompt = page.get_by_placeholder("a text, or a number of tokens")

    prompt.fill("You are a helpful assistant . Tell me about cats")
    page.get_by_role("button", name="Add request").click()
    page.wait_for_function("() => document.querySelector('.nvx-why').textContent.includes('1 sequence waiting')")
    page.get_by_role("button", name="Step", exact=True).click()
    page.wait_for_function("() => document.querySelector('.nvx-why').textContent.includes('admitted')")

    prompt.fill("24")
    prompt.press("Enter")
    page.wait_for_function("() => document.querySelector('.nvx-why').textContent.includes('waiting for the next step')")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_function("() => document.querySelector('.nvx-root').textContent.includes('reached its length limit')")
    last = page.evaluate(STEP)
    assert last >= 8

    page.get_by_label("Budget, tokens per step").fill("4")  # the same requests in smaller steps
    page.wait_for_function("n => +document.querySelector('.nvx-scrub').max > n", arg=last)
    page.get_by_label("Cache, blocks").fill("8")
    page.wait_for_function("() => document.querySelector('.nvx-root').textContent.includes('of 8 blocks held')")

    page.focus(".nvx-scrub")
    for key in ("Home", "ArrowRight", "ArrowRight", "a", "b", "d", "d"):  # letters that JupyterLab would take for commands
        page.keyboard.press(key)
    assert page.evaluate(STEP) == 2 and page.evaluate(FOCUS_IS_INSIDE) and page.evaluate(CELLS) == 1
    page.get_by_role("button", name="Rewind").click()
    page.wait_for_function("() => +document.querySelector('.nvx-scrub').max <= 3")

    page.get_by_placeholder("a text, or a number of tokens").fill("9999")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.nvx-error').textContent.includes('prompt length=9999')")

    lab_page.change_theme("Dark")
    page.set_viewport_size({"width": 1000, "height": 1000})
    page.wait_for_function("() => !document.querySelector('.nvx-root').classList.contains('nvx-wide')")
    assert page.evaluate(MISPLACED) == []
    lab_page.change_theme("Light")

    reopen(lab_page, "scheduler.ipynb")
    page.focus(".nvx-scrub")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(STEP) == 1
    no_trouble(lab_page)
