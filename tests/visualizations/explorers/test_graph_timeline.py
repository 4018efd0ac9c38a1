"""GraphTimelineExplorer: what it packs of profiled traces, and how the browser reads it."""

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.tracing.trace import Trace
from tests.visualizations.explorers.node import node_test
from tests.visualizations.samples import profiled
from visualizations import GraphTimelineExplorer
from visualizations.explorers.base import unpack
from visualizations.explorers.graph_timeline import KINDS, RESOLUTION, kind_of


def pair() -> dict:
    return {"eager": (profiled(False), 0), "captured": (profiled(True), 0)}


def test_operations_are_packed_whole_with_their_times():
    trace, _ = pair()["eager"]
    data = unpack(GraphTimelineExplorer(pair()).payload)
    eager, captured = data["runs"]
    assert [lane["kind"] for lane in eager["lanes"]] == ["launches", "device"]
    kernels = [o for o in trace.operations if o["track"] != "launches"]
    packed = eager["lanes"][1]["ops"]
    assert [data["names"][name][0] for _, _, name in packed] == [o["name"] for o in kernels]
    for (start, duration, _), operation in zip(packed, kernels, strict=True):
        assert start * RESOLUTION == pytest.approx(operation["time"], abs=RESOLUTION)
        assert duration * RESOLUTION == pytest.approx(operation["duration"], abs=RESOLUTION)
    assert [len(lane["ops"]) for lane in captured["lanes"]] == [1, 40]
    assert eager["busy"] == pytest.approx(40 * 1.3e-6 / RESOLUTION, abs=2) and eager["end"] > captured["end"]
    assert eager["phases"] == [["launch", 500, 20000]]


def test_a_step_of_a_real_engine_loaded_from_a_file(tmp_path):
    with LLM(kvcache_block_size=16, num_kvcache_blocks=32) as llm:
        with llm.trace(profile=True) as trace:
            llm.generate("Once upon a time", SamplingParams(max_tokens=3, temperature=0, ignore_eos=True), use_tqdm=False)
    trace.save(tmp_path / "step.trace")
    explorer = GraphTimelineExplorer({"on the CPU": (Trace.load(tmp_path / "step.trace"), 1)})
    data = unpack(explorer.payload)
    (run,) = data["runs"]
    kinds = {KINDS[kind][0] for _, kind in data["names"]}
    assert {"attention", "matrix products"} <= kinds and run["lanes"][0]["name"].startswith("CPU operators")
    assert all(0 <= start <= run["end"] for lane in run["lanes"] for start, _, _ in lane["ops"])
    assert len(explorer.payload) < 20_000 and "on the CPU" in explorer.summary()


def test_what_was_not_profiled_is_refused():
    trace, index = pair()["eager"]
    trace.operations.clear()
    with pytest.raises(ValueError, match="operations of step 0 in 'plain'=0: must be at least one"):
        GraphTimelineExplorer({"plain": (trace, index)})
    with pytest.raises(ValueError, match=r"runs=\{\}"):
        GraphTimelineExplorer({})


@pytest.mark.parametrize(("name", "kind"), [
    ("_decode_kernel", "attention"), ("void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits>(...)", "attention"),
    ("nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT", "matrix products"), ("_linear_kernel", "matrix products"),
    ("aten::mm", "matrix products"),
    ("_norm_rope_store_kernel", "norms, RoPE, cache store"), ("_norm_kernel", "norms, RoPE, cache store"),
    ("_sample_kernel", "sampling"), ("Memcpy DtoH (Device -> Pinned)", "copies"), ("aten::to", "copies"),
    ("void at::native::vectorized_elementwise_kernel<4>", "the rest")])
def test_kernels_are_known_by_their_names(name, kind):
    assert KINDS[kind_of(name)][0] == kind


def test_the_still_is_the_figure_of_the_same_runs():
    ax, = GraphTimelineExplorer(pair()).figure().axes
    assert {text.get_text() for text in ax.get_yticklabels()} == {f"{n}: {k}" for n in pair() for k in ("launches", "GPU")}


def test_reading_the_runs_in_javascript():
    node_test("graph_timeline.js", """
const ops = [[0, 10, 0], [20, 10, 1], [25, 10, 0], [50, 5, 1]];
test("busy time counts overlaps once", () => {
  assert.equal(js.busyWithin(ops, 0, 100), 10 + 15 + 5);
  assert.equal(js.busyWithin(ops, 5, 27), 5 + 7);
  assert.equal(js.busyWithin([], 0, 9), 0);
});
test("how far a run has come", () => {
  assert.deepEqual(js.progress(ops, 26), { begun: 3, done: 1, running: ops[2] });
  assert.deepEqual(js.progress(ops, -1), { begun: 0, done: 0, running: null });
  assert.equal(js.progress(ops, 99).done, 4);
});
test("shares by kind", () => {
  assert.deepEqual(js.sharesOf(ops, (name) => name, 2, 0, 28), [{ time: 13, count: 2 }, { time: 8, count: 1 }]);
});
test("zooming and moving stay inside", () => {
  const all = { from: 0, to: 10000 };
  assert.deepEqual(js.zoomed(all, 0.5, 2500, 10000), { from: 1250, to: 6250 });
  assert.deepEqual(js.zoomed({ from: 1250, to: 6250 }, 2, 2500, 10000), all);
  assert.deepEqual(js.zoomed(all, 9, 0, 10000), all);
  assert.equal(js.zoomed(all, 1e-9, 5000, 10000).to - js.zoomed(all, 1e-9, 5000, 10000).from, 200);
  assert.deepEqual(js.panned({ from: 10, to: 30 }, -50, 100), { from: 0, to: 20 });
  assert.deepEqual(js.panned({ from: 10, to: 30 }, 500, 100), { from: 80, to: 100 });
});
test("axes and words", () => {
  assert.deepEqual(js.roundTicks(0, 100, 5), { apart: 20, at: [0, 20, 40, 60, 80, 100] });
  assert.deepEqual([5, 150, 15000, 250000].map((t) => js.timeWords(t, 10)), ["50 ns", "1.5 µs", "150 µs", "2.50 ms"]);
});
test("the operation under the pointer", () => {
  assert.deepEqual([5, 14, 27, 99].map((t) => js.operationAt(ops, t, 6)), [0, 0, 1, -1]);
  assert.equal(js.operationAt(ops, 99, Infinity), 3);
});
test("names of kernels without what the compiler added", () => {
  assert.equal(js.shortName("void cutlass::Kernel2<cutlass_80_wmma>(Params)"), "Kernel2");
  assert.equal(js.shortName("void at::native::elementwise_kernel<128, 4, lambda()>(int)"), "elementwise_kernel");
  assert.equal(js.shortName("void at::native::(anonymous namespace)::cunn_SoftMax<4>(float)"), "cunn_SoftMax");
  assert.equal(js.shortName("aten::scaled_dot_product_attention"), "aten::scaled_dot_product_attention");
  assert.equal(js.shortName("Memcpy DtoH (Device -> Pinned)"), "Memcpy DtoH");
});
""")
