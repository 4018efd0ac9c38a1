"""The report of a recorded run: one file that holds everything."""

import gzip
import json
import re

import pytest

from nanovllm.tracing.trace import Trace
from tests.visualizations.samples import profiled, serve
from visualizations import report
from visualizations.__main__ import main


@pytest.fixture(scope="module")
def trace() -> Trace:
    return serve([[30 * i + j for j in range(8)] for i in range(1, 4)], max_tokens=12, num_blocks=10, prefix_caching=False)[0]


@pytest.fixture
def saved(trace, tmp_path):
    trace.save(tmp_path / "run.trace")
    return tmp_path / "run.trace"


def facts(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))


def test_one_page_with_everything_inside(saved, tmp_path, capsys, trace):
    assert main([str(saved), "-o", str(tmp_path / "report.html"), "--perfetto", str(tmp_path / "run.json.gz")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{len(trace)} steps" in capsys.readouterr().out and "<title>run.trace</title>" in page
    assert page.count("widget-view+json") >= 2 and page.count("<picture>") == 4
    assert set(re.findall(r"""(?:src|href|srcset)=["'](?!data:)[^"']*""", page)) == set()
    assert set(re.findall(r"https?://[\w./]+", page)) <= {"http://www.w3.org/2000/svg"}
    numbers = facts(page)
    assert numbers["requests ended"] == "3" and numbers["tokens generated"] == "36" and numbers["steps"] == str(len(trace))
    assert numbers["preemptions"] == str(sum(len(r.preempted) for r in trace)) != "0"
    assert "The pictures show the whole run." in page
    events = json.loads(gzip.decompress((tmp_path / "run.json.gz").read_bytes()))["traceEvents"]
    assert {"X", "C", "M", "i"} <= {event["ph"] for event in events}


def test_a_window_of_a_long_run(saved, trace, tmp_path):
    assert main([str(saved), "-o", str(tmp_path / "part.html"), "--steps", "5:9", "--title", "A < part"]) == 0
    page = (tmp_path / "part.html").read_text(encoding="utf-8")
    assert "<h1>A &lt; part</h1>" in page and f"steps 5 to 8 of {len(trace)}" in page
    assert facts(page)["tokens generated"] == "36"  # the numbers stay those of the whole


def test_a_slice_knows_only_its_own_requests(trace):
    last = trace[-1:]
    assert set(last.meta["prompts"]) == last[0].seq_ids() < set(trace.meta["prompts"])
    assert last.meta["arrivals"].keys() == last.meta["prompts"].keys() and last.meta["block_size"] == 4


def test_a_profiled_step_gets_its_timeline():
    page = report.report_html(_profiled_run())
    assert "One step on the machine" in page


def _profiled_run() -> Trace:
    trace, step = serve([[1, 2, 3, 4, 5]], max_tokens=3)[0], profiled(captured=False)
    start = trace[1].time
    trace.operations = [o | {"time": o["time"] + start} for o in step.operations]
    return trace


def test_bad_input_is_one_line(saved, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("no trace", encoding="utf-8")
    other, none = str(tmp_path / "other.txt"), str(tmp_path / "none")
    for arguments, message in (([other], "trace format version"), ([none], "No such file"),
                               ([str(saved), "--steps", "900:"], "steps=")):
        assert main([*arguments, "-o", str(tmp_path / "x.html")]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        main([str(saved), "--steps", "few"])
    assert "as in 200:400" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least one step"):
        report.report_html(Trace())
