"""The two "what if" explorers: the browser counts as Python does, and what they say is what the arithmetic says."""

import json

import pytest

from tests.visualizations.explorers.node import node_test
from visualizations import ParallelCostExplorer, RooflineExplorer
from visualizations.explorers.base import reopened, unpack
from visualizations.explorers.step_cost import DEVICES, SHAPES, packed, step_cost, work_of

CASES = [(shape, device, asked) for shape in SHAPES for device in DEVICES.values() for asked in (
    {"sequences": 1, "context": 512}, {"sequences": 256, "context": 2048, "ranks": 4, "latency": 19e-6},
    {"sequences": 4, "context": 128, "tokens": 1024, "weight_bytes": 0.5, "cache_bytes": 1},
    {"sequences": 16, "context": 512, "ranks": 16})]


def test_the_browser_counts_as_python_does():
    cases = [{"shape": packed(shape), "device": device, "parts": step_cost(shape, device, **asked),
              "work": work_of(shape, **{k: v for k, v in asked.items() if k not in ("ranks", "latency")}),
              "asked": {{"weight_bytes": "weightBytes", "cache_bytes": "cacheBytes"}.get(k, k): v for k, v in asked.items()}}
             for shape, device, asked in CASES]
    node_test("step_cost.js", f"const cases = {json.dumps(cases)};" + """
test("costs and work", () => {
  const near = (a, b) => assert.ok(Math.abs(a - b) <= 1e-9 * Math.abs(b), `${a} is not ${b}`);
  for (const { shape, device, asked, parts, work } of cases) {
    const mine = js.stepCost(shape, device, asked), whole = js.workOf(shape, asked);
    for (const part of Object.keys(parts)) near(mine[part], parts[part]);
    near(whole.flops, work[0]);
    near(whole.bytes, work[1]);
  }
});
""")


def test_costs_are_those_of_the_harness():
    from benchmarks import roofline, workloads

    class Shape:
        vars().update(workloads.SHAPE)

    ceilings = roofline.Ceilings(read=4.43e12, copy=4.26e12, matmul=793e12)
    for count, context in ((1, 384), (256, 700)):
        floors = {part: work.floor(ceilings) for part, work in roofline.decode_work(Shape, [context] * count).items()}
        parts = step_cost(SHAPES[0], DEVICES["H200"], sequences=count, context=context - 1)
        assert parts["matrices"] == pytest.approx(floors["layer matmuls"] + floors["LM head"], rel=0.01)
        assert parts["attention"] == pytest.approx(floors["attention"], rel=0.01)


def test_small_models_lose_by_splitting_and_large_ones_gain():
    small, large = (ParallelCostExplorer(model=name).costs() for name in ("Qwen3-0.6B", "Qwen3-32B"))
    times = [{name: sum(parts.values()) for name, parts in costs.items()} for costs in (small, large)]
    assert min(times[0], key=times[0].get) == "one card" and min(times[1], key=times[1].get) == "8 ranks"
    assert 1.6 < times[1]["one card"] / times[1]["2 ranks"] < 2
    assert "one card" in ParallelCostExplorer().summary()


@pytest.mark.parametrize("explorer_cls", [ParallelCostExplorer, RooflineExplorer])
def test_refuses_what_no_knob_has_and_reopens_without_python(explorer_cls):
    for wrong in ({"model": "GPT-2"}, {"device": "abacus"}, {"sequences": 3}, {"context": 100}):
        with pytest.raises(ValueError, match=r"choose|start"):
            explorer_cls(**wrong)
    explorer = explorer_cls()
    data, _ = explorer._repr_mimebundle_()
    saved = reopened(data["application/vnd.nanovllm.explorer+json"])
    assert unpack(saved.payload) == unpack(explorer.payload) and explorer.figure().axes


def test_the_lesson_names_the_fastest():
    node_test("parallel_cost.js", """
test("lesson", () => {
  const rows = [{ ranks: 1, parts: { matrices: 4, attention: 0, sums: 0 } },
                { ranks: 2, parts: { matrices: 2, attention: 0, sums: 1 } }];
  assert.match(js.lesson(rows), /^2 ranks are fastest here, 1\\.33 times.*33% of the step\\.$/);
  rows[1].parts.sums = 9;
  assert.match(js.lesson(rows), /^One card is fastest/);
});
""")
