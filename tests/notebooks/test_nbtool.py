"""The notebook tool on small notebooks made here: it must see what is stale, and leave no diff where nothing is."""

import base64
import io
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.notebooks import compare, nbtool
from tests.notebooks.canonical import WIDGET_VIEW, canonical, dumps
from visualizations.explorers import base

PLAIN = """\
print("blocks", 3 * 4)
object()
"""
PICTURE = """\
import matplotlib.pyplot as plt
plt.bar([0, 1, 2], [{heights}]);
"""
WIDGET = """\
import ipywidgets
ipywidgets.IntSlider(value=4)
"""
EXPLORER = """\
import visualizations as viz
from nanovllm.fleet.simulation import Simulation
simulation = Simulation(num_blocks=8)
simulation.add(6, 4)
explorer = viz.SchedulerExplorer(simulation)
explorer
"""
CLOCK = """\
import time
print(time.perf_counter_ns(), "ns")
"""


def write(path, *cells):
    path.write_text(nbformat.writes(new_notebook(cells=list(cells))), encoding="utf-8")
    return path


def update(path):
    assert nbtool.main(["update", "--jobs", "1", str(path)]) == 0
    return path.read_text(encoding="utf-8")


def code_outputs(path, place=0):
    return nbformat.read(path, 4).cells[place].outputs


def png(heights="1, 2, 3"):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    figure.subplots().bar([0, 1, 2], [float(h) for h in heights.split(",")])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.notebook
def test_a_second_run_leaves_no_diff(tmp_path):
    """Addresses, widgets, a picture and a clock: all of them churn in a plain notebook."""
    path = write(
        tmp_path / "churn.ipynb",
        new_markdown_cell("# Churn"),
        new_code_cell(PLAIN),
        new_code_cell(PICTURE.format(heights="1, 2, 3")),
        new_code_cell(WIDGET),
        new_code_cell(CLOCK, metadata={"tags": ["volatile"]}),
    )
    first = update(path)
    assert "0x…" in first and WIDGET_VIEW not in first and "image/png" in first
    assert update(path) == first
    assert nbtool.main(["check", str(path)]) == 0


@pytest.mark.notebook
@pytest.mark.parametrize(("later", "wrong"), [
    ("print(len(simulation.trace))", None), ("explorer.close()", "it was closed by a later cell"),
    ("simulation.step = None", "step: TypeError")], ids=["alive", "closed", "broken"])
def test_an_explorer_that_a_later_cell_kills_fails_the_check(tmp_path, capsys, later, wrong):
    path = write(tmp_path / "explorer.ipynb", new_code_cell(EXPLORER), new_code_cell(later))
    problems = nbtool.process(path, "run").problems
    if wrong is None:
        assert problems == []
    else:
        assert len(problems) == 1 and "explorer is dead after Run All" in problems[0] and wrong in problems[0]
        assert "cell 0" in problems[0]


@pytest.mark.notebook
def test_a_stale_output_fails_the_check_and_update_mends_it(tmp_path, capsys):
    path = write(tmp_path / "stale.ipynb", new_code_cell(PLAIN))
    current = update(path)
    path.write_text(current.replace("blocks 12", "blocks 13"), encoding="utf-8")
    assert nbtool.main(["check", str(path)]) == 1
    said = capsys.readouterr().out
    assert "-[stdout] blocks 13" in said and "+[stdout] blocks 12" in said
    assert "13" in path.read_text(encoding="utf-8"), "check must not write"
    assert update(path) == current


@pytest.mark.notebook
def test_an_untagged_clock_is_stale(tmp_path):
    path = write(tmp_path / "clock.ipynb", new_code_cell(CLOCK))
    update(path)
    assert "outputs are stale" in nbtool.check(path)[0]


@pytest.mark.notebook
def test_a_notebook_never_run_is_stale(tmp_path):
    path = write(tmp_path / "bare.ipynb", new_code_cell(PLAIN))
    assert "no committed output" in nbtool.check(path)[0]


@pytest.mark.notebook
def test_a_cell_error_fails_check_and_update_and_keeps_the_file(tmp_path, capsys):
    path = write(tmp_path / "error.ipynb", new_code_cell("blocks = []\nblocks[4]"), new_code_cell("print('after')"))
    before = path.read_text(encoding="utf-8")
    assert nbtool.main(["check", str(path)]) == 1
    assert nbtool.main(["update", str(path)]) == 1
    assert "IndexError: list index out of range" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == before


@pytest.mark.notebook
def test_a_cell_that_must_fail(tmp_path):
    tagged = {"tags": ["raises-exception"]}
    path = write(tmp_path / "shown.ipynb", new_code_cell("1 / 0", metadata=tagged), new_code_cell("print('after')"))
    first = update(path)
    assert code_outputs(path)[0].ename == "ZeroDivisionError" and "after" in first
    assert update(path) == first
    path = write(tmp_path / "harmless.ipynb", new_code_cell("1 / 1", metadata=tagged))
    assert "raised nothing" in nbtool.check(path)[0]


@pytest.mark.notebook
def test_a_cell_that_hangs_is_stopped(tmp_path):
    path = write(tmp_path / "hang.ipynb", new_code_cell("while True: pass"))
    verdict = nbtool.process(path, "check", cell_seconds=2)
    assert "CellTimeoutError" in verdict.problems[0] and verdict.seconds < 60


@pytest.mark.notebook
def test_run_writes_a_copy_elsewhere_with_what_this_run_gave(tmp_path, capsys):
    """Also where a cell is volatile or its committed output still holds: update would keep that, a record must not."""
    clock = new_code_cell(CLOCK, metadata={"tags": ["volatile"]}, outputs=[new_output("stream", text="1 ns\n")])
    close = new_code_cell("print('loss 1.0000')", outputs=[new_output("stream", text="loss 1.0004\n")])
    path, broken = write(tmp_path / "a.ipynb", clock, close), write(tmp_path / "b.ipynb", new_code_cell("1 / 0"))
    before = path.read_text(encoding="utf-8")
    assert nbtool.main(["run", "--to", str(tmp_path / "new" / "runs"), str(path), str(broken)]) == 1
    copy = tmp_path / "new" / "runs" / "a.ipynb"
    assert code_outputs(copy)[0].text.endswith(" ns\n") and code_outputs(copy)[0].text != "1 ns\n"
    assert code_outputs(copy, 1)[0].text == "loss 1.0000\n"
    assert path.read_text(encoding="utf-8") == before and [file.name for file in copy.parent.iterdir()] == ["a.ipynb"]
    assert "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["run", "a.ipynb"], ["update", "--to", "folder", "a.ipynb"]])
def test_only_run_takes_a_folder_and_needs_one(arguments, capsys):
    with pytest.raises(SystemExit):
        nbtool.main(arguments)
    assert "run needs --to FOLDER, and no other command takes it" in capsys.readouterr().err


@pytest.mark.notebook
def test_the_kernel_runs_in_the_folder_of_the_notebook(tmp_path):
    (tmp_path / "beside.txt").write_text("found", encoding="utf-8")
    path = write(tmp_path / "folder.ipynb", new_code_cell("print(open('beside.txt').read())"))
    update(path)
    assert code_outputs(path)[0].text == "found\n"


def test_normalize_runs_nothing_and_is_idempotent(tmp_path):
    cell = new_code_cell("raise SystemExit", outputs=[new_output("stream", text="<obj at 0x7f00deadbeef>\n")])
    cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    path = write(tmp_path / "form.ipynb", cell)
    assert nbtool.process(path, "normalize").problems == ["not in canonical form"]
    assert nbtool.main(["normalize", str(path)]) == 0
    once = path.read_text(encoding="utf-8")
    assert "deadbeef" not in once and "2026" not in once
    assert nbtool.process(path, "normalize").problems == []


def test_cell_ids_stay():
    cells = [new_code_cell("1", id="sampler"), new_markdown_cell("text", id="end")]
    assert [cell["id"] for cell in canonical(new_notebook(cells=cells)).cells] == ["sampler", "end"]


def test_widget_state_and_png_texts_are_dropped():
    data = {"image/png": png(), WIDGET_VIEW: {"model_id": "f00"}, "text/plain": "Explorer(3 steps)"}
    notebook = new_notebook(cells=[new_code_cell("w", outputs=[new_output("display_data", data=data)])])
    notebook.metadata["widgets"] = {"state": "megabytes"}
    form = canonical(notebook)
    assert b"Software" in base64.b64decode(data["image/png"])
    assert b"Software" not in base64.b64decode(form.cells[0].outputs[0].data["image/png"])
    assert set(form.cells[0].outputs[0].data) == {"image/png", "text/plain"}
    assert "widgets" not in json.loads(dumps(form))["metadata"]


def test_a_progress_bar_is_kept_in_its_last_state():
    pieces = [new_output("stream", name="stderr", text=text) for text in ("0%\r", "50%\r", "100%\n")]
    form = canonical(new_notebook(cells=[new_code_cell("bar", outputs=pieces)]))
    assert [output.text for output in form.cells[0].outputs] == ["100%\n"]


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("loss 1.0000", "loss 1.0004", True),
        ("loss 1.000", "loss 1.002", False),
        ("1000 tokens", "1001 tokens", False),  # a count is exact
        ("logit -3.2e-4", "logit -3.2001e-4", True),
        ("block [1, 2]", "block [1,  2]", True),  # a space is not
        ("a  b", "a b", True),
        ("", "0.0", False),
        ("0x…", "0x…", True),
    ],
)
def test_numbers_in_text(a, b, same):
    assert compare.same_text(a, b) is same


def test_pictures():
    assert compare.same_picture(png("1, 2, 3"), png("1, 2, 3.001"))
    assert not compare.same_picture(png("1, 2, 3"), png("1, 2.5, 3"))


def test_an_explorers_data_is_compared_without_its_times():
    def saved(data):
        return {"module": "run.js", "label": "", "step": 0, "payload": base64.b64encode(base.pack(data)).decode()}

    was, slower, other = ({"steps": [{"tokens": n, "seconds": t}]} for n, t in ((3, 0.5), (3, 0.7), (4, 0.5)))
    assert compare.same_value(base.SAVED, saved(was), saved(slower))
    assert not compare.same_value(base.SAVED, saved(was), saved(other))
    committed, now = ([nbformat.v4.new_output("display_data", {base.SAVED: saved(data)})] for data in (was, other))
    told = compare.describe_difference(committed, now)
    assert '"tokens": 3' in told and '"tokens": 4' in told and "0.5" not in told


def test_an_explorers_scores_may_differ_by_a_rounding():
    was = {"units": 1000, "logits": [[2496, -5455], [7, 0]], "words": {"0": "a"}}

    def same(**changes):
        a, b = ({"name": "sampler", "payload": base64.b64encode(base.pack(data)).decode()} for data in (was, was | changes))
        return compare.same_value(base.SAVED, a, b)

    assert same() and same(logits=[[2497, -5455], [7, -1]])
    assert not same(logits=[[2498, -5455], [7, 0]]) and not same(logits=[[2496, -5455]])
    assert not same(words={"0": "b"}) and not same(units=100)
