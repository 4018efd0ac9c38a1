"""The first thing a reader does: open a chapter in JupyterLab and press Run All."""

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.notebooks.canonical import canonical, dumps

CHAPTER = "chapters/00_life_of_a_prompt.ipynb"
RUN_SECONDS = 300  # a minute on a quiet laptop; CI runs other tests beside it

FOLDED = "() => jupyterapp.shell.currentWidget.content.widgets.filter(widget => widget.outputHidden).length"
BREAKS = "() => [...document.querySelectorAll('.jp-OutputArea-output pre')].map(pre => getComputedStyle(pre).wordBreak)"

TROUBLE = """\
from IPython.display import HTML, Javascript, display
display(HTML("<img src='https://elsewhere.example/pixel.png'>"))
display(Javascript("console.error('said by the cell')"))
"""


@pytest.mark.timeout(600)
def test_run_all_in_the_first_chapter(lab_page):
    lab_page.open(CHAPTER)
    assert lab_page.page.evaluate(FOLDED) > 0  # the answers to predictions, until they are run
    lab_page.clear_outputs()
    assert not any(cell["kinds"] for cell in lab_page.state()["cells"])

    cells = lab_page.run_all(RUN_SECONDS)

    assert len(cells) >= 5
    for cell in cells:
        assert bool(cell["errors"]) == cell["must_fail"], f"cell {cell['place']}: {cell['errors'] or 'no error'}"
    assert lab_page.page.evaluate(FOLDED) == 0
    breaks = lab_page.page.evaluate(BREAKS)
    assert breaks and set(breaks) == {"normal"}  # JupyterLab's own is break-all
    assert lab_page.broken_widgets() == []
    assert lab_page.console_errors == []
    assert lab_page.outside == []


def test_the_page_sees_errors_and_requests_that_leave(lab, lab_page):
    """Or the empty lists above would prove nothing."""
    cells = [new_code_cell(TROUBLE), new_code_cell("1 / 0"), new_code_cell("print('never')")]
    (lab.folder / "trouble.ipynb").write_text(dumps(canonical(new_notebook(cells=cells))), encoding="utf-8")
    lab_page.open("trouble.ipynb")

    cells = lab_page.run_all(60)

    assert [cell["errors"] for cell in cells] == [[], ["ZeroDivisionError: division by zero"], []]
    assert set(lab_page.outside) == {"https://elsewhere.example/pixel.png"}
    assert any("said by the cell" in text for text in lab_page.console_errors)
