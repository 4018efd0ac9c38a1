"""Single steps: of sequences that decode, of a prefill, and of the engine with its parts taken away."""

import json
import time

import torch

from benchmarks import roofline, workloads
from benchmarks.ablation import forms
from benchmarks.breakdown import Watch, profile_steps
from benchmarks.gpu_bench import Bench
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.sequence import Sequence


def prefilled(engine: LLMEngine, requests: workloads.Requests) -> list[Sequence]:
    """The requests' sequences, all of which decode from the next step on."""
    sequences = [engine.add_request(*request) for request in zip(*requests)]
    while any(seq.num_uncomputed_tokens > 1 for seq in sequences) or engine.scheduler.waiting:
        engine.step()
    return sequences


def end(engine: LLMEngine, sequences: list[Sequence]) -> None:
    for seq in sequences:
        engine.abort(seq.seq_id)
    take_in_flight(engine)


def take_in_flight(engine: LLMEngine) -> None:
    while engine._in_flight:
        engine.step()


def measure_decode_steps(bench: Bench) -> None:
    """Steps in which a fixed number of sequences decode: the time, the floor, and both by kind of work."""
    rows = []
    for count, mean in ((256, 700), (64, 700), (16, 700), (1, 384)):
        engine = bench.llm.engine
        sequences = prefilled(engine, workloads.steady(count, count, mean))
        for _ in range(10):
            engine.step()
        contexts = [len(seq) for seq in sequences]
        watch = Watch()
        with watch.on(engine):
            for _ in range(60):
                engine.step()
        profiled = profile_steps(engine, 12)
        end(engine, sequences)
        work = roofline.decode_work(bench.llm.config.hf_config, contexts)
        floors = {kind: part.floor(bench.ceilings) * 1e3 for kind, part in work.items()}
        rows.append({"sequences": count, "context": mean, **watch.summary(), "floor ms": sum(floors.values()),
                     **{f"floor {kind} ms": ms for kind, ms in floors.items()},
                     **{f"{kind} ms": ms for kind, ms in profiled["by kind"].items()},
                     "busy ms": profiled["busy"], "idle between kernels ms": profiled["span"] - profiled["busy"],
                     "kernels": profiled["kernels"]})
        print(json.dumps(profiled["top"], indent=0)[:3500] if count in (256, 1) else "", flush=True)
    bench.put("decode step", rows)


def measure_prefill_step(bench: Bench) -> None:
    """One step of 16 prompts of 1024 tokens, by kind of work."""
    engine = bench.llm.engine
    engine._looks_ahead, looks_ahead = False, engine._looks_ahead  # so that the profiler sees one step, and all of it
    for request in zip(*workloads.prefill(seed=77, count=16)):
        engine.add_request(*request)
    profiled = profile_steps(engine, 1)
    engine._looks_ahead = looks_ahead
    print(json.dumps(profiled["top"], indent=0)[:3000], flush=True)
    bench.put("prefill step", {"tokens": 16_384, **{f"{kind} ms": ms for kind, ms in profiled["by kind"].items()},
                               "busy ms": profiled["busy"], "span ms": profiled["span"]})


def measure_ablation(bench: Bench) -> None:
    """Milliseconds a decode step of 128 sequences, with one part after another added to plain PyTorch."""
    engine, rows = bench.llm.engine, []
    for name, steps, take in forms(bench.llm):
        sequences = prefilled(engine, workloads.steady(7, 128, 500))
        engine._looks_ahead = False
        take_in_flight(engine)  # what it launched in its own form
        take()
        engine.step()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
        ms = (time.perf_counter() - began) / steps * 1e3
        rows.append({"engine": name, "ms a step": ms, "tok/s": 128 / ms * 1e3})
        end(engine, sequences)
    bench.put("ablation", rows)
