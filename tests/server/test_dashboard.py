"""The Grafana dashboard asks Prometheus for what `/metrics` exposes, and for nothing else."""

import copy
import json
import re
from importlib import resources

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nanovllm import LLM
from tests.server.conftest import running_server

promql = pytest.importorskip("promql_parser", reason="needs the extra 'dev'")

DASHBOARD = json.loads(resources.files("nanovllm.server").joinpath("grafana.json").read_text(encoding="utf-8"))
OF_PROMETHEUS = {"job", "instance"}  # labels that it adds to whatever it scrapes
WINDOWED = {"rate", "increase", "irate"}


@pytest.fixture(scope="module")
def exposed():
    """{sample name: (its family's type, its labels)} after one request to an engine that drafts."""
    with LLM(device="cpu", num_kvcache_blocks=64, speculative_config={"method": "ngram", "num_speculative_tokens": 2}) as llm:
        with running_server(llm) as server:
            httpx.post(f"{server.url}/v1/completions", timeout=60, json={
                "prompt": "a b c a b c a b c", "max_tokens": 12, "temperature": 0, "ignore_eos": True}).raise_for_status()
            text = httpx.get(f"{server.url}/metrics", timeout=60).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, (family.type, set()))[1].update(sample.labels)
    return found


def targets(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def complaints(dashboard, exposed):
    """Everything that is wrong with the expressions and legends, in words."""
    wrong = []
    for title, text, legend in targets(dashboard):
        try:
            tree = promql.parse(text.replace("$__rate_interval", "1m"))
        except ValueError as error:
            wrong.append(f"{title}: {error}")
            continue
        wrong += [f"{title}: {complaint}" for complaint in _of_expression(tree, exposed)]
        for label in set(re.findall(r"{{(\w+)}}", legend)) - _labels(tree, exposed):
            wrong.append(f"{title}: the legend shows {label}, which the result has not")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inner, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            wrong += [f"{variable['name']}: {complaint}" for complaint in _of_expression(promql.parse(inner), exposed)]
            if label not in _labels(promql.parse(inner), exposed):
                wrong.append(f"{variable['name']}: {inner} has no label {label}")
    return wrong


def _nodes(tree, kind):
    found = []
    promql.walk(tree, lambda node: (found.append(node) if isinstance(node, kind) else None, True)[1])
    return found


def _of_expression(tree, exposed):
    for selector in _nodes(tree, promql.VectorSelector):
        if selector.name not in exposed:
            yield f"{selector.name} is not exposed"
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in exposed[selector.name][1] | OF_PROMETHEUS:
                yield f"{selector.name} has no label {matcher.name}"
    for aggregate in _nodes(tree, promql.AggregateExpr):
        for label in set(aggregate.modifier.labels if aggregate.modifier else ()) - _labels(aggregate.expr, exposed):
            yield f"by ({label}), which {aggregate.expr.prettify()} has not"
    for call in _nodes(tree, promql.Call):
        names = [selector.name for selector in _nodes(call, promql.VectorSelector)]
        if call.func.name in WINDOWED and any(exposed.get(name, ("",))[0] == "gauge" for name in names):
            yield f"{call.func.name} of a gauge: {names}"
        if call.func.name == "histogram_quantile" and "le" not in _labels(call.args[1], exposed):
            yield "histogram_quantile of what has no le"


def _labels(tree, exposed):
    """The labels that the result of an expression can have."""
    if isinstance(tree, promql.AggregateExpr):
        return set(tree.modifier.labels) if tree.modifier else set()
    if isinstance(tree, promql.BinaryExpr):
        return _labels(tree.lhs, exposed) & _labels(tree.rhs, exposed)
    if isinstance(tree, promql.Call):
        return _labels(tree.args[-1], exposed)
    if isinstance(tree, promql.MatrixSelector):
        return _labels(tree.vector_selector, exposed)
    if isinstance(tree, promql.ParenExpr):
        return _labels(tree.expr, exposed)
    assert isinstance(tree, promql.VectorSelector), tree
    return exposed.get(tree.name, ("", set()))[1] | OF_PROMETHEUS


def test_every_expression_asks_for_metrics_and_labels_that_are_exposed(exposed):
    assert len(list(targets(DASHBOARD))) > 25 and not complaints(DASHBOARD, exposed)


@pytest.mark.parametrize(("right", "wrong", "message"), [
    ("nanovllm_request_seconds_bucket", "nanovllm_request_latency_bucket", "is not exposed"),
    ("nanovllm_generated_tokens_total", "nanovllm_generated_tokens", "is not exposed"),
    ("sum by (status)", "sum by (code)", r"by \(code\), which"), ("{{status}}", "{{code}}", "the legend shows code"),
    ("nanovllm_requests_running{", "nanovllm_requests_running{model=\"x\", ", "has no label model"),
    ("0.9, sum by (le) (rate(nanovllm_queue", "0.9, sum (rate(nanovllm_queue", "has no le"),
    ("sum(nanovllm_requests_waiting", "sum(rate(nanovllm_requests_waiting[1m]) + nanovllm_requests_waiting", "rate of a gauge"),
    ("label_values(nanovllm_steps_total, job)", "label_values(nanovllm_step_total, job)", "is not exposed"),
    ("sum (rate(nanovllm_steps_total", "sum (rate((nanovllm_steps_total", "Steps: ")])
def test_what_is_not_exposed_is_found(exposed, right, wrong, message):
    """The check above would be worth nothing if it could not fail."""
    changed = copy.deepcopy(DASHBOARD)
    for panel in changed["panels"]:
        for target in panel.get("targets", ()):
            target |= {key: target[key].replace(right, wrong) for key in ("expr", "legendFormat")}
    for variable in changed["templating"]["list"]:
        variable["definition"] = variable.get("definition", "").replace(right, wrong)
    assert changed != DASHBOARD
    assert any(re.search(message, complaint) for complaint in complaints(changed, exposed)), complaints(changed, exposed)


def test_panels_do_not_overlap_and_say_what_they_show():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
