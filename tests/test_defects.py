"""What small engines get wrong, and ours must not: one test for each known defect, by its number.

Most have more tests, near the code they concern; here each right-hand side is asserted once, on the whole engine where it
shows there.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import nbformat
import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.engine import cache_size
from nanovllm.layers.layernorm import RMSNorm

from .checkpoints import greedy, random_checkpoint, reference

GREEDY = SamplingParams(temperature=0, max_tokens=6)
PROMPT = list(range(40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(folder):
    """make(**settings) -> an LLM, closed at the end of the test."""
    made = []

    def make(**settings):
        made.append(LLM(folder, **{"device": "cpu", "kvcache_block_size": 4} | settings))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def tokens(llm, prompts, params=GREEDY):
    return [out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)]


def test_defect_01_nothing_is_distributed_at_size_one(make):
    first, second = make(), make()  # two engines in one process, neither with a port or a process group
    assert tokens(first, [PROMPT]) == tokens(second, [PROMPT])
    assert not torch.distributed.is_initialized()
    layer = first.engine.model_runner.model.model.layers[0].self_attn.qkv_proj
    assert (layer.tp.rank, layer.tp.size, layer.tp.group) == (0, 1, None)


def test_defect_02_del_llm_frees_everything_and_close_may_be_called_again(folder):
    llm = LLM(folder, device="cpu")
    tokens(llm, [PROMPT])
    held = [weakref.ref(x) for x in (llm, llm.engine.model_runner.kv_cache, llm.engine.model_runner.model)]
    del llm
    assert [ref() for ref in held] == [None] * 3
    with LLM(folder, device="cpu") as llm:
        held = weakref.ref(llm.engine.model_runner.kv_cache)
    assert held() is None
    llm.close()
    llm.close()


def test_defect_03_after_an_interrupt_only_ones_own_outputs_come(make, monkeypatch):
    llm = make()
    collect, calls = llm.engine.model_runner.collect, []

    def interrupted(launched):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return collect(launched)

    monkeypatch.setattr(llm.engine.model_runner, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1], [2]], use_tqdm=False)
    assert not llm.engine.has_unfinished
    out, = llm.generate([[3, 4]], GREEDY, use_tqdm=False)
    assert out.prompt_token_ids == [3, 4] and out.request_id == 2


def test_defect_04_a_prompt_larger_than_the_cache_is_refused_when_added_and_harms_nobody(make):
    llm = make(num_kvcache_blocks=8)
    waiting = llm.engine.add_request([1, 2, 3], GREEDY)
    with pytest.raises(ValueError, match=r"must be at most 33 tokens.*raise num_kvcache_blocks"):
        llm.generate([PROMPT], GREEDY, use_tqdm=False)
    assert tokens(llm, [[1, 2, 3]]) == [waiting.output_token_ids]


def test_defect_05_what_would_outgrow_the_cache_is_refused_and_what_just_fits_ends(make):
    llm = make(num_kvcache_blocks=2)
    with pytest.raises(ValueError, match=r"prompt \+ max_tokens=10: must be at most 9 tokens"):
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=7), use_tqdm=False)
    out, = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=6, ignore_eos=True), use_tqdm=False)
    assert (len(out.token_ids), out.finish_reason) == (6, "length")


def test_defect_06_length_stops_at_max_model_len(make):
    llm = make(max_model_len=64)
    out, = llm.generate([[1] * 63], SamplingParams(max_tokens=50, ignore_eos=True), use_tqdm=False)
    assert (len(out.token_ids), out.finish_reason) == (1, "length")
    with pytest.raises(ValueError, match="prompt length=64: must be below max_model_len=64"):
        llm.generate([[1] * 64], use_tqdm=False)


def test_defect_07_validation_survives_python_O():
    code = ("from nanovllm import SamplingParams\n"
            "for bad in (dict(temperature=-1), dict(max_tokens=0), dict(top_p=0), dict(n=0), dict(stop=[''])):\n"
            "    try: SamplingParams(**bad)\n"
            "    except ValueError: continue\n"
            "    raise SystemExit(str(bad))")
    assert subprocess.run([sys.executable, "-O", "-c", code], check=False).returncode == 0


def test_defect_08_every_sampling_option_per_request(make):
    llm = make()
    plain = tokens(llm, [[1, 2, 3]])[0]
    options = [dict(), dict(temperature=1.0, top_k=1), dict(temperature=1.0, top_p=1e-9), dict(temperature=1.0, min_p=1.0),
               dict(temperature=1.0, seed=5), dict(temperature=1.0, seed=5), dict(repetition_penalty=5.0),
               dict(presence_penalty=2.0, frequency_penalty=2.0), dict(logit_bias={plain[0]: -100}), dict(logprobs=2),
               dict(stop_token_ids=[plain[1]])]
    params = [SamplingParams(**{"temperature": 0, "max_tokens": 6, "ignore_eos": True} | o) for o in options]
    outputs = llm.generate([[1, 2, 3]] * len(params), params, use_tqdm=False)
    a = [out.token_ids for out in outputs]
    assert a[0] == a[1] == a[2] == a[3] == plain, "one token left to choose from is the greedy one"
    assert a[4] == a[5] and a[8][0] != plain[0] and a[10] == plain[:plain.index(plain[1]) + 1]
    assert len(set(a[6])) == 6, "a penalty of 5 lets nothing come twice"
    assert len(outputs[9].logprobs) == 6 and outputs[10].finish_reason == "stop"


def test_defect_09_max_tokens_zero_is_refused():
    with pytest.raises(ValueError, match="max_tokens=0: must be a whole number, 1 or more"):
        SamplingParams(max_tokens=0)


def test_defect_10_one_text_is_one_prompt_and_nonsense_is_an_error():
    with LLM(device="cpu") as llm:
        assert len(llm.generate("hello", SamplingParams(max_tokens=1), use_tqdm=False)) == 1
        for prompts, params, message in (("", None, "prompt=''"), (["a", "b"], [SamplingParams()], "must be 2"),
                                         ([1, 2], None, "wrap one prompt's token ids")):
            with pytest.raises(ValueError, match=message):
                llm.generate(prompts, params, use_tqdm=False)
    with pytest.raises(ValueError, match="did you mean 'max_tokens'"):
        SamplingParams(max_token=3)


def test_defect_11_max_num_seqs_is_a_cap(make):
    llm = make(max_num_seqs=2)
    with llm.trace() as trace:
        tokens(llm, [[i] * 5 for i in range(4)])
    assert max(len(record.running) for record in trace) == 2


def test_defect_12_a_fully_cached_prompt_recomputes_one_token_and_writes_nothing(make):
    llm = make()
    first = tokens(llm, [PROMPT])
    cache = llm.engine.model_runner.kv_cache
    seq = llm.engine.add_request(PROMPT, SamplingParams(temperature=0, max_tokens=1))
    before = cache.clone()
    with llm.trace() as trace:
        llm.engine.step()
    assert trace[0].num_prefill_tokens == 1 and seq.num_hit_tokens == 40 and seq.output_token_ids == first[0][:1]
    assert torch.equal(cache, before)


def test_defect_13_the_same_prompt_twice_is_stored_once(make):
    llm = make()
    with llm.trace() as trace:
        a, b = tokens(llm, [PROMPT, PROMPT])
    assert a == b and max(record.num_blocks_in_use for record in trace) <= 10 + 2 * 2
    assert sum(record.num_prefill_tokens for record in trace) == 41


def test_defect_14_running_requests_advance_every_step(make):
    llm = make(max_num_batched_tokens=8)
    running = llm.engine.add_request([1], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    llm.engine.step()
    for arrival in range(20):
        llm.engine.add_request([arrival] * 30, SamplingParams(temperature=0, max_tokens=1))
        llm.engine.step()
    assert running.num_output_tokens >= 20
    while llm.engine.has_unfinished:
        llm.engine.step()


def test_defect_15_any_prompt_may_be_chunked_and_unfinished_chunks_draw_nothing(make):
    prompts = [[1] * 20, [2] * 20, [3] * 20]
    whole = tokens(make(), prompts)
    llm = make(max_num_batched_tokens=12)
    with llm.trace() as trace:
        assert tokens(llm, prompts) == whole
    chunked = {s["seq_id"] for r in trace for s in r.scheduled if s["phase"] == "prefill" and s["seq_id"] not in r.tokens}
    assert chunked == {0, 1, 2}


def test_defect_16_a_reserve_keeps_preemptions_rare_and_they_are_counted_and_shown(make):
    llm = make(num_kvcache_blocks=32, enable_prefix_caching=False)
    with llm.trace() as trace:
        tokens(llm, [[i] * 16 for i in range(16)], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    computed = sum(record.num_prefill_tokens for record in trace)
    assert computed <= 1.25 * 16 * 16 and llm.engine.scheduler.num_preemptions <= 4
    assert llm.engine.scheduler.num_preemptions == sum(len(record.preempted) for record in trace)
    assert f"preemptions={llm.engine.scheduler.num_preemptions}" in repr(llm)


def test_defect_17_graphs_serve_every_batch_size_up_to_the_cap(make):
    # Rows padded to the sizes of graphs, as on a GPU, but not captured. Each step or two another request ends.
    params = [SamplingParams(temperature=0, max_tokens=3 + 2 * i, ignore_eos=True) for i in range(20)]
    prompts = [[i, i + 1, i + 2] for i in range(20)]
    expected = tokens(make(max_num_seqs=20), prompts, params)
    llm, sizes = make(max_num_seqs=20, async_scheduling=True), set()
    runner = llm.engine.model_runner
    runner.graphs = runner.decode_graphs(llm.config, capture=False)
    launch = runner.graphs.launch
    runner.graphs.launch = lambda items, *rest: (sizes.add(len(items)), launch(items, *rest))[1]
    assert tokens(llm, prompts, params) == expected
    assert sizes == set(range(1, 21)) and runner.graphs.rows.size_for(17) >= 17


def test_defect_18_enforce_eager_is_one_switch_for_all(make, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled or captured something although enforce_eager=True")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    assert len(tokens(make(enforce_eager=True), [PROMPT])[0]) == 6


def test_defect_19_float32_norms_leave_their_inputs_alone():
    norm, x, residual = RMSNorm(8, 1e-6, dtype=torch.float32), torch.randn(2, 8), torch.randn(2, 8)
    norm.weight.fill_(1)
    kept = x.clone(), residual.clone()
    normed, total = norm(x, residual)
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, torch.nn.functional.rms_norm(x + residual, (8,), eps=1e-6))


@pytest.mark.parametrize("block_size", [1, 3, 16, 256])
def test_defect_20_plain_pytorch_serves_any_block_size(make, folder, block_size):
    llm = make(kvcache_block_size=block_size, attention_backend="torch")
    assert tokens(llm, [PROMPT, [1, 2]]) == [greedy(reference(folder), p, 6) for p in (PROMPT, [1, 2])]


def test_defect_21_a_missing_tensor_is_an_error(folder, tmp_path):
    from safetensors.torch import load_file, save_file
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing.*model\.layers\.1\.mlp\.up_proj\.weight"):
        LLM(tmp_path, device="cpu")


def test_defect_22_rope_scaling_we_do_not_compute_is_refused_and_no_table_is_global(folder, tmp_path):
    other = random_checkpoint(tmp_path / "other", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    expected = [greedy(reference(f), PROMPT, 6) for f in (folder, other)]
    with LLM(folder, device="cpu") as a, LLM(other, device="cpu") as b:
        assert [tokens(a, [PROMPT])[0], tokens(b, [PROMPT])[0]] == expected and expected[0] != expected[1]
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e6}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="longrope"):
        LLM(other, device="cpu")


def test_defect_23_block_size_belongs_to_an_engine(make):
    small, large = make(kvcache_block_size=1), make(kvcache_block_size=32)
    a, b = small.engine.add_request(PROMPT, GREEDY), large.engine.add_request(PROMPT, GREEDY)
    while small.engine.has_unfinished or large.engine.has_unfinished:
        small.engine.step(), large.engine.step()
    assert a.output_token_ids == b.output_token_ids and len(a.output_token_ids) == 6


@pytest.mark.unmeasured
def test_defect_24_messages_of_any_size_arrive_and_a_dead_worker_is_an_error_in_time(make):
    llm = make(tensor_parallel_size=2)
    long = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, stop_token_ids=[95] * 600_000)
    message = len(pickle.dumps(long))
    seq = llm.engine.add_request([1, 2, 3], long)
    for _ in range(5):
        llm.engine.step()
    assert message > 1 << 20 and seq.num_output_tokens == 5
    os.kill(llm.engine.model_runner.workers.pids[1], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank 1 .*SIGKILL.*make a new LLM"):
        while not seq.is_finished:
            llm.engine.step()
    assert time.monotonic() - began < 10


def test_defect_25_memory_is_counted_for_this_engine_only_and_the_error_has_the_numbers(make, monkeypatch):
    llm, gib = make(num_kvcache_blocks=9), 2**30
    assert llm.engine.block_manager.num_blocks == 9  # explicit, and asked of nobody
    runner, config = llm.engine.model_runner, llm.config
    config.gpu_memory_utilization = 0.9
    card = dict(empty_cache=None, reset_peak_memory_stats=None, memory_allocated=1 * gib, max_memory_allocated=3 * gib)
    for name, value in card.items():
        monkeypatch.setattr(torch.cuda, name, lambda *a, value=value: value)
    # 80 GiB of which others hold 69: their part is not ours to count twice, and what is free is the limit.
    for free, expected in ((10 * gib, 8 * gib), (79 * gib, 69 * gib)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *a, free=free: (free, 80 * gib))
        graphs = cache_size._graph_memory(config)
        found = cache_size._free_memory(runner.model, runner.sampler, runner.cache_shape, config)
        assert found == pytest.approx(expected - graphs, rel=1e-6)
    config.device = torch.device("cuda")
    monkeypatch.setattr(cache_size, "_free_memory", lambda *a: 10_000)
    with pytest.raises(ValueError, match=r"'0\.00 GiB': must be at least .* GiB, one request of .*; raise"):
        cache_size.fit_blocks(runner.model, runner.sampler, runner.cache_shape, config)


def test_defect_26_every_end_token_ends_with_a_reason_and_without_its_text():
    with LLM(device="cpu") as llm:
        end, other = llm.config.eos_token_ids
        for token in (end, other):
            params = SamplingParams(temperature=0, logit_bias={token: 100}, max_tokens=5)
            out, = llm.generate("A fox", params, use_tqdm=False)
            assert (out.token_ids, out.text, out.finish_reason, out.stop_reason) == ([token], "", "stop", None)


@pytest.mark.unmeasured
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_defect_27_prefix_hits_over_many_blocks_keep_the_text(make, folder, block_size):
    prompts = [PROMPT[:length] + [90] * extra for length, extra in ((40, 0), (40, 3), (33, 5), (40, 3), (17, 1))]
    llm, model = make(kvcache_block_size=block_size), reference(folder)
    expected = [greedy(model, p, 6) for p in prompts]
    with llm.trace() as trace:
        assert [tokens(llm, [p])[0] for p in prompts] == expected
    assert sum(sum(record.hit_tokens.values()) for record in trace) >= 80 // block_size * block_size


def silent_cells(notebook) -> list[int]:
    """Cells that may not run and do not say so: skipped for good, or guarded by a question for a GPU without an answer."""
    silent = []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            # Waiting for the device where there is one leaves nothing out.
            source = re.sub(r"if [^\n]*cuda[^\n]*:\s*torch\.cuda\.synchronize\(\)", "", cell.source)
            asks = "cuda.is_available()" in source or 'device.type == "cuda"' in source
            answers = "else" in source or "not torch.cuda.is_available()" in source
            around = "".join(c.source for c in notebook.cells[max(0, i - 1):i + 2]).lower()
            skipped = "skip-execution" in cell.metadata.get("tags", [])
            if (asks and not answers) or (skipped and "recorded" not in around and "not run" not in around):
                silent.append(i)
    return silent


def test_defect_28_a_chapter_that_could_not_run_something_says_so():
    cell = nbformat.v4.new_code_cell
    skipped = cell("run()", metadata={"tags": ["skip-execution"]})
    bad = [cell("if torch.cuda.is_available():\n    run()\nprint('passed')"), skipped]
    assert silent_cells(nbformat.v4.new_notebook(cells=bad)) == [0, 1]
    chapters = sorted(Path(__file__).parents[1].glob("chapters/**/*.ipynb"))
    assert chapters and {str(c): silent_cells(nbformat.read(c, 4)) for c in chapters} == {str(c): [] for c in chapters}


def test_every_defect_has_its_test():
    numbers = {int(found[1]) for name in globals() if (found := re.match(r"test_defect_(\d+)_", name))}
    assert numbers == set(range(1, 29))
