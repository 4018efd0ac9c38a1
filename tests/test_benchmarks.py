"""What the benchmarks compute without a GPU: workloads, floors, kinds of kernels, the table."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks import breakdown, machine, others, roofline, structured, table, workloads
from nanovllm.config import OFFLINE_MODEL

SHAPE = SimpleNamespace(**workloads.SHAPE)


def test_the_mixed_workload_is_nano_vllms():
    prompts, params = workloads.mixed(256)
    assert sum(p.max_tokens for p in params) == 133_966 and sum(map(len, prompts)) == 142_827
    assert {p.temperature for p in params} == {0.6} and all(p.ignore_eos for p in params)


def test_requests_are_new_for_every_seed():
    for make in (workloads.one, workloads.prefill, workloads.shared_prompt):
        assert make(1)[0] != make(2)[0] and make(1)[0] == make(1)[0]
    assert len({tuple(prompt[:512]) for prompt in workloads.shared_prompt(3)[0]}) == 1
    lengths = sorted(map(len, workloads.steady(0, 64, 700)[0]))
    assert lengths[0] >= 350 and lengths[-1] <= 1050 and abs(sum(lengths) / 64 - 700) < 2


def test_a_decode_step_reads_every_weight_and_every_key_once():
    work = roofline.decode_work(SHAPE, [1000, 24])
    assert work["attention"].bytes == 1024 * 114_688  # Qwen3-0.6B's cache, bytes a token
    weights = work["layer matmuls"].bytes + work["LM head"].bytes
    assert 1.18e9 < weights < 1.2e9  # 0.6 billion parameters in bf16
    assert work["LM head"].flops == 2 * 2 * 1024 * 151_936
    slow, fast = roofline.Ceilings(1e12, 1e12, 1e15), roofline.Ceilings(2e12, 1e12, 1e15)
    assert work["attention"].floor(slow) == pytest.approx(2 * work["attention"].floor(fast))
    many = roofline.step_work(SHAPE, 16_384, 16, 16_384, 16 * 1024 * 1025 // 2)
    assert many["layer matmuls"].floor(slow) == pytest.approx(many["layer matmuls"].flops / 1e15)  # arithmetic, not memory


def test_kernels_have_kinds():
    for kernel, kind in (("nvjet_sm90_tst_64x32_64x16_1x2_h_bz_TNT", "matmul"), ("_decode_kernel", "attention"),
                         ("_decode_few_kernel", "attention"), ("_linear_kernel", "matmul"),
                         ("_norm_rope_store_kernel", "norms, RoPE, gate, store"),
                         ("_draw_kernel", "sampler"), ("_write_rows_kernel", "rows"), ("Memcpy DtoH", "other")):
        assert breakdown.kind_of(kernel) == kind


def test_a_random_checkpoint_is_served(tmp_path):
    from nanovllm import LLM

    shape = dict(vocab_size=10_001, hidden_size=32, intermediate_size=48, head_dim=16, num_hidden_layers=1,
                 num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    folder = workloads.write_checkpoint(tmp_path / "model", **shape)
    with LLM(folder, device="cpu") as llm:
        (out,) = llm.generate(*workloads.one(0, 8, 4), use_tqdm=False)
        assert len(out.token_ids) == 4


def test_a_random_model_ends_with_a_token_of_its_vocabulary(tmp_path):
    """Whatever tokenizer is given: with Qwen's end of text beyond a smaller vocabulary no schema could be read."""
    folder = structured.random_model(OFFLINE_MODEL / "tokenizer.json", tmp_path)
    vocabulary = json.loads((OFFLINE_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    known = set(vocabulary["model"]["vocab"].values()) | {token["id"] for token in vocabulary["added_tokens"]}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"] in known


def test_the_table_holds_what_a_results_file_holds():
    starts = [{"start": "cold, with a tokenizer", "s": 17.0}, {"start": "warm, with a tokenizer", "s": 4.8}]
    results = {"device": "NVIDIA H200", "one": {"ms/token": 0.7}, "start": starts}
    text = table.table(results)
    assert "0.70 ms a token | 2.13 ms a token | 1.49 ms a token | 0.48 ms a token | 0.27 ms a token |" in text
    assert "4.8 s | 28.0 s | 69.0 s | 8.0 s |  |" in text and "17.0 s | 43.0 s | 100.0 s | 25.0 s |  |" in text
    of_a_shape = table.table({"device": "NVIDIA H200", "shape": "8B", "one": {"ms/token": 4.5},
                              "first token": [{"prompt tokens": 16, "ms": 5.7}, {"prompt tokens": 128, "ms": 6.4}]})
    assert "4.50 ms a token | 6.00 ms a token | 4.97 ms a token" in of_a_shape
    assert "| 6.4 ms | 50.0 ms | 15.0 ms |" in of_a_shape
    assert "256 requests" not in text
    assert "2.13" not in table.table(results | {"device": "NVIDIA H100"})  # the others were not measured there
    for file in machine.RESULTS.glob("*.json"):
        results = json.loads(file.read_text(encoding="utf-8"))
        if "decode step" in results:
            assert len(table.steps(results).splitlines()) == 2 + len(results["decode step"])
            assert machine.results_file(results["device"]) == file


def test_the_readme_shows_the_tables_of_the_results_file():
    readme = (machine.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    for name in ("nvidia-h200", "shapes/nvidia-h200-8b", "shapes/nvidia-h200-1-7b"):
        results = json.loads((machine.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        assert table.table(results) in readme, "see `python -m benchmarks table`"
        assert "decode step" not in results or table.steps(results) in readme
        assert f"commit {results['commit']}" in readme


def small_stretches():
    pytest.importorskip("triton")
    from benchmarks.stretches import draw_stretch, layer_stretches

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = SimpleNamespace(**workloads.SHAPE | dict(vocab_size=5001, hidden_size=48, intermediate_size=80, head_dim=16,
                                                     num_attention_heads=4, num_key_value_heads=2))  # fmt: skip
    torch.manual_seed(0)
    return [*layer_stretches(shape, 20, device, torch.float32), draw_stretch(shape, 5, device, torch.float32)]


def measure(stretch):
    from benchmarks.stretches import measure

    return measure(stretch, lambda call: (call(), 1.0)[1])


def test_every_stretch_is_checked_and_has_three_times(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced whole; nothing is generated
    for stretch in small_stretches():
        row = measure(stretch)
        assert row == {"stretch": stretch[0], "tokens": len(stretch[3][0]), "eager us": 1, "compiled us": 1, "ours us": 1}


@pytest.mark.parametrize("place", range(4))
def test_a_stretch_that_computes_something_else_is_not_timed(place, monkeypatch):
    def slightly_wrong(*inputs):
        results = plain(*inputs)
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        results[-1] = results[-1] + (1 if results[-1].dtype == torch.int64 else 1e-3)
        return results if len(results) > 1 else results[0]

    name, plain, ours, inputs = small_stretches()[place]
    with pytest.raises(AssertionError):
        measure((name, plain, slightly_wrong, inputs))
    monkeypatch.setattr(torch, "compile", lambda function, **options: slightly_wrong)
    row = measure((name, plain, ours, inputs))
    assert row["compiled us"] is None and row["compiled error"].startswith("AssertionError") and row["ours us"] == 1


def test_a_stretch_that_does_not_compile_keeps_its_row(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    row = measure(small_stretches()[0])
    assert row["compiled error"] == "RuntimeError: no compiler here" and row["eager us"] == row["ours us"] == 1


def test_the_others_figures_are_whole_and_belong_to_no_machine_of_ours():
    works, steps = others.OTHERS["works"], others.OTHERS["step of 256"]
    for work, row in works.items():
        figures = [row[name] for name in (*others.OTHERS["engines"], "target") if name in row]
        assert figures and min(figures) > 0, work
        if "limit" in row:  # nobody passes it, whichever way is up
            best = (min if row["unit"] in ("s", "ms/token") else max)(figures)
            assert (best > row["limit"]) == (row["unit"] in ("s", "ms/token"))
    for name, step in steps.items():
        parts = sum(ms for part, ms in step.items() if part not in ("step ms", "gpu ms", "host"))
        assert 0 < parts <= step.get("step ms", step.get("gpu ms")), name
    assert sum(steps["nano-vllm"]["host"].values()) <= steps["nano-vllm"]["exposed ms"]
    assert "device" not in others.OTHERS  # or `recorded` would show them as ours
