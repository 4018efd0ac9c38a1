"""Whole runs of requests: throughput, one request alone, first tokens, prefill, and what filters and sharing cost."""

import statistics
from dataclasses import replace
from typing import Any

from benchmarks import roofline, workloads
from benchmarks.breakdown import Watch, clocks
from benchmarks.gpu_bench import Bench, generate
from benchmarks.gpu_steps import end, prefilled
from nanovllm import LLM


def measure_one(bench: Bench) -> None:
    runs, medians = [], []
    for seed in range(5):
        seconds, (out,) = generate(bench.llm, workloads.one(seed))
        runs.append(seconds / len(out.token_ids) * 1e3)
        medians.append(statistics.median(out.timings.inter_token) * 1e3)
    bench.put("one", {"requests": "1, 128 tokens in, 256 out", "ms/token": statistics.median(runs),
                      "ms between tokens": statistics.median(medians), "runs": runs,
                      "floor ms": bench.floor_ms([256])})


def measure_first_token(bench: Bench) -> None:
    """Milliseconds to the first token of one prompt, alone, by its length."""
    rows = []
    for length in (16, 128, 500, 1000):
        times = [generate(bench.llm, workloads.one(1000 * length + i, length, 1))[0] * 1e3 for i in range(8)]
        rows.append({"prompt tokens": length, "ms": statistics.median(times), "runs": times})
    bench.put("first token", rows)


def measure_filtered(bench: Bench) -> None:
    """256 requests and one, whose draws are restricted: by two filters, by one alone, by none."""
    rows = []
    for name, asked in workloads.FILTERS.items():
        bench.llm.engine.block_manager.reset_prefix_cache()
        prompts, params = workloads.mixed(256)
        seconds, outputs = generate(bench.llm, (prompts, [replace(p, **asked) for p in params]))
        prompts, params = workloads.one(3)
        _, (out,) = generate(bench.llm, (prompts, [replace(p, **asked) for p in params]))
        rows.append({"filters": name, "output tok/s": sum(len(out.token_ids) for out in outputs) / seconds,
                     "one request, ms between tokens": statistics.median(out.timings.inter_token) * 1e3})
    bench.put("filtered", rows)


def measure_mixed(bench: Bench) -> None:
    runs, requests = [], workloads.mixed(256)
    for _ in range(2):
        bench.llm.engine.block_manager.reset_prefix_cache()
        seconds, outputs = generate(bench.llm, requests)
        runs.append(sum(len(out.token_ids) for out in outputs) / seconds)
    bench.put("mixed", {"requests": "256, 100-1024 tokens in, 100-1024 out", "output tokens": 133_966,
                        "output tok/s": statistics.median(runs), "runs": runs})


def measure_prefill(bench: Bench) -> None:
    runs = []
    for seed in range(4):
        seconds, _ = generate(bench.llm, workloads.prefill(seed))
        runs.append(64 * 1024 / seconds)
    card: dict[str, Any] = {}
    watch = Watch()
    with watch.on(bench.llm.engine), clocks(card):
        for seed in range(9, 14):  # for as long as the clocks are looked at
            generate(bench.llm, workloads.prefill(seed))
    shape = bench.llm.config.hf_config
    work = roofline.step_work(shape, 65_536, 64, 65_536, 64 * 1024 * 1025 // 2)
    bench.put("prefill", {"requests": "64, 1024 tokens in", "prompt tok/s": statistics.median(runs[1:]), "runs": runs,
                          "floor ms": sum(part.floor(bench.ceilings) for part in work.values()) * 1e3,
                          "ms": 65_536 / statistics.median(runs[1:]) * 1e3})
    bench.put("prefill, watched", {"gpu ms a step": statistics.median(watch.gpu), "steps": len(watch.gpu), **card})


def measure_long(bench: Bench) -> None:
    """8 prompts of 16,384 tokens: how fast they are read, and a step in which all of them decode."""
    bench.close()
    with LLM(bench.folder, max_model_len=20_480) as llm:
        runs = [8 * 16_384 / generate(llm, workloads.long(seed))[0] for seed in range(3)]
        watch = Watch()
        sequences = prefilled(llm.engine, workloads.long(9, 128))
        with watch.on(llm.engine):
            for _ in range(60):
                llm.engine.step()
        end(llm.engine, sequences)
    bench.put("long", {"requests": "8, 16,384 tokens in", "prompt tok/s": statistics.median(runs[1:]), "runs": runs,
                       "decode ms/step": watch.summary()["gpu ms"]})


def measure_shared(bench: Bench) -> None:
    runs, hits = [], 0
    for seed in range(2):
        seconds, outputs = generate(bench.llm, workloads.shared_prompt(seed))
        hits = sum(out.num_cached_tokens for out in outputs)
        runs.append({"output tok/s": sum(len(out.token_ids) for out in outputs) / seconds, "s": seconds})
    bench.put("shared prompt", {"requests": "256 behind one system prompt of 512 tokens", "cached tokens": hits, **runs[-1]})


def measure_mixed_watched(bench: Bench) -> None:
    """The same work with each step timed: what the host does and how much of it the GPU waits for."""
    bench.llm.engine.block_manager.reset_prefix_cache()
    card: dict[str, Any] = {}
    watch = Watch()
    with watch.on(bench.llm.engine), clocks(card):
        seconds, _ = generate(bench.llm, workloads.mixed(256))
    bench.put("mixed, watched", {"s": seconds, **card, "gpu s": sum(watch.gpu) / 1e3, "exposed s": sum(watch.exposed) / 1e3,
                                 **watch.summary()})


def measure_many(bench: Bench) -> None:
    """1024 requests, and as many sequences at once."""
    bench.close()
    with LLM(bench.folder, max_num_seqs=1024) as llm:
        watch = Watch()
        generate(llm, workloads.one(seed=98, num_out=16))
        with watch.on(llm.engine):
            seconds, outputs = generate(llm, workloads.mixed(1024, seed=1))
        tokens = sum(len(out.token_ids) for out in outputs)
        full = [(e, g) for e, g, n in zip(watch.exposed, watch.gpu[1:], watch.rows[1:]) if n > 700]
        bench.put("1024 requests", {
            "requests": "1024, 100-1024 tokens in, 100-1024 out", "output tokens": tokens, "output tok/s": tokens / seconds,
            "preemptions": llm.engine.scheduler.num_preemptions, "most sequences": max(watch.rows),
            "exposed ms above 700 sequences": statistics.median(e for e, _ in full) if full else None,
            "gpu ms above 700 sequences": statistics.median(g for _, g in full) if full else None, **watch.summary()})
