"""The whole engine on one GPU: throughput, one request, prefill, start, and where the time of a step goes.

    python -m benchmarks                      # on a machine with a GPU: all of it, into benchmarks/results/<GPU>.json
    python -m benchmarks gpu --only one,mixed # some of it, into the same file

Random bf16 weights of Qwen3-0.6B's shape. Each figure stands beside its floor, computed from what this very machine reads
and multiplies per second, and beside the figures of nano-vllm and vLLM on an H200.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from benchmarks import machine, record, roofline, workloads
from benchmarks.breakdown import Watch, clocks, profile_steps
from nanovllm import LLM
from nanovllm.config import OFFLINE_MODEL
from nanovllm.engine.model_runner import ModelRunner

START = """
import time; began = time.perf_counter()
import sys
import nanovllm; from nanovllm import LLM, SamplingParams
import nanovllm.llm; imported = time.perf_counter()
llm = LLM(sys.argv[1]); built = time.perf_counter()
llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False); drawn = time.perf_counter()
import json; print(json.dumps({"import": imported - began, "construct": built - imported, "first tokens": drawn - built}))
"""


def generate(llm: LLM, requests: workloads.Requests) -> tuple[float, list[Any]]:
    torch.cuda.synchronize()
    began = time.perf_counter()
    outputs = llm.generate(*requests, use_tqdm=False)
    return time.perf_counter() - began, outputs


class Bench:
    """One engine for most sections, made when first needed. results: what goes to the file, section by section."""

    def __init__(self, folder: Path, file: Path, recorded: Path = record.RECORDED):
        self.folder, self.file, self.recorded = folder, file, recorded
        self.results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.results |= machine.gpu()
        self._llm: LLM | None = None

    @property
    def llm(self) -> LLM:
        if self._llm is None:
            self._llm = LLM(self.folder)
            generate(self._llm, workloads.one(seed=99, num_out=16))
        return self._llm

    def close(self) -> None:
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    @property
    def ceilings(self) -> roofline.Ceilings:
        return roofline.Ceilings(*(self.results["ceilings"][name] for name in ("read B/s", "copy B/s", "matmul FLOP/s")))

    def put(self, section: str, result: Any) -> None:
        self.results[section] = result
        self.file.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        print(f"{section}: {json.dumps(result)[:1500]}", flush=True)

    # -- sections ------------------------------------------------------------------------------------------------------

    def measure_ceilings(self) -> None:
        found = roofline.Ceilings.measure()
        torch.cuda.empty_cache()
        self.put("ceilings", {"read B/s": found.read, "copy B/s": found.copy, "matmul FLOP/s": found.matmul})

    def measure_start(self) -> None:
        """A fresh process each: the first may have to compile kernels, the others find them in Triton's cache. The random
        model's folder has no tokenizer, a real one does: it is warm in both ways."""
        rows = []
        with tempfile.TemporaryDirectory() as whole:
            for file in (*self.folder.iterdir(), *OFFLINE_MODEL.glob("tokenizer*")):
                link = Path(whole) / file.name
                if not link.exists():
                    link.symlink_to(file)
            for when, folder in (("first", self.folder), ("warm, with a tokenizer", whole), ("warm", self.folder)):
                ran = subprocess.run([sys.executable, "-c", START, str(folder)], capture_output=True, encoding="utf-8")
                if ran.returncode:
                    raise RuntimeError(f"the engine did not start: {ran.stderr[-3000:]}")
                seconds = json.loads(ran.stdout.splitlines()[-1])
                rows.append({"start": when, "s": seconds["import"] + seconds["construct"], **seconds})
        self.put("start", rows)

    def measure_one(self) -> None:
        runs, medians = [], []
        for seed in range(5):
            seconds, (out,) = generate(self.llm, workloads.one(seed))
            runs.append(seconds / len(out.token_ids) * 1e3)
            medians.append(statistics.median(out.timings.inter_token) * 1e3)
        self.put("one", {"requests": "1, 128 tokens in, 256 out", "ms/token": statistics.median(runs),
                         "ms between tokens": statistics.median(medians), "runs": runs,
                         "floor ms": self._floor([256])})

    def measure_first_token(self) -> None:
        """Milliseconds to the first token of one prompt, alone, by its length."""
        rows = []
        for length in (16, 128, 500, 1000):
            times = [generate(self.llm, workloads.one(1000 * length + i, length, 1))[0] * 1e3 for i in range(8)]
            rows.append({"prompt tokens": length, "ms": statistics.median(times), "runs": times})
        self.put("first token", rows)

    def measure_filtered(self) -> None:
        """256 requests and one, whose draws are restricted: by two filters, by one alone, by none."""
        rows = []
        for name, asked in workloads.FILTERS.items():
            self.llm.engine.block_manager.reset_prefix_cache()
            prompts, params = workloads.mixed(256)
            seconds, outputs = generate(self.llm, (prompts, [replace(p, **asked) for p in params]))
            prompts, params = workloads.one(3)
            _, (out,) = generate(self.llm, (prompts, [replace(p, **asked) for p in params]))
            rows.append({"filters": name, "output tok/s": sum(len(out.token_ids) for out in outputs) / seconds,
                         "one request, ms between tokens": statistics.median(out.timings.inter_token) * 1e3})
        self.put("filtered", rows)

    def measure_mixed(self) -> None:
        runs, requests = [], workloads.mixed(256)
        for _ in range(2):
            self.llm.engine.block_manager.reset_prefix_cache()
            seconds, outputs = generate(self.llm, requests)
            runs.append(sum(len(out.token_ids) for out in outputs) / seconds)
        self.put("mixed", {"requests": "256, 100-1024 tokens in, 100-1024 out", "output tokens": 133_966,
                           "output tok/s": statistics.median(runs), "runs": runs})

    def measure_prefill(self) -> None:
        runs = []
        for seed in range(4):
            seconds, _ = generate(self.llm, workloads.prefill(seed))
            runs.append(64 * 1024 / seconds)
        card: dict[str, Any] = {}
        watch = Watch()
        with watch.on(self.llm.engine), clocks(card):
            for seed in range(9, 14):  # for as long as the clocks are looked at
                generate(self.llm, workloads.prefill(seed))
        shape = self.llm.config.hf_config
        work = roofline.step_work(shape, 65_536, 64, 65_536, 64 * 1024 * 1025 // 2)
        self.put("prefill", {"requests": "64, 1024 tokens in", "prompt tok/s": statistics.median(runs[1:]), "runs": runs,
                             "floor ms": sum(part.floor(self.ceilings) for part in work.values()) * 1e3,
                             "ms": 65_536 / statistics.median(runs[1:]) * 1e3})
        self.put("prefill, watched", {"gpu ms a step": statistics.median(watch.gpu), "steps": len(watch.gpu), **card})

    def measure_shared(self) -> None:
        runs, hits = [], 0
        for seed in range(2):
            seconds, outputs = generate(self.llm, workloads.shared_prompt(seed))
            hits = sum(out.num_cached_tokens for out in outputs)
            runs.append({"output tok/s": sum(len(out.token_ids) for out in outputs) / seconds, "s": seconds})
        self.put("shared prompt", {"requests": "256 behind one system prompt of 512 tokens", "cached tokens": hits, **runs[-1]})

    def measure_mixed_watched(self) -> None:
        """The same work with each step timed: what the host does and how much of it the GPU waits for."""
        self.llm.engine.block_manager.reset_prefix_cache()
        card: dict[str, Any] = {}
        watch = Watch()
        with watch.on(self.llm.engine), clocks(card):
            seconds, _ = generate(self.llm, workloads.mixed(256))
        self.put("mixed, watched", {"s": seconds, **card, "gpu s": sum(watch.gpu) / 1e3, "exposed s": sum(watch.exposed) / 1e3,
                                    **watch.summary()})

    def measure_decode_steps(self) -> None:
        """Steps in which a fixed number of sequences decode: the time, the floor, and both by kind of work."""
        rows = []
        for count, mean in ((256, 700), (64, 700), (16, 700), (1, 384)):
            engine, requests = self.llm.engine, workloads.steady(count, count, mean)
            sequences = [engine.add_request(*request) for request in zip(*requests)]
            while any(seq.num_uncomputed_tokens > 1 for seq in sequences) or engine.scheduler.waiting:
                engine.step()
            for _ in range(10):
                engine.step()
            contexts = [len(seq) for seq in sequences]
            watch = Watch()
            with watch.on(engine):
                for _ in range(60):
                    engine.step()
            profiled = profile_steps(engine, 12)
            for seq in sequences:
                engine.abort(seq.seq_id)
            while engine._in_flight:
                engine.step()
            work = roofline.decode_work(self.llm.config.hf_config, contexts)
            floors = {kind: part.floor(self.ceilings) * 1e3 for kind, part in work.items()}
            rows.append({"sequences": count, "context": mean, **watch.summary(), "floor ms": sum(floors.values()),
                         **{f"floor {kind} ms": ms for kind, ms in floors.items()},
                         **{f"{kind} ms": ms for kind, ms in profiled["by kind"].items()},
                         "busy ms": profiled["busy"], "idle between kernels ms": profiled["span"] - profiled["busy"],
                         "kernels": profiled["kernels"]})
            print(json.dumps(profiled["top"], indent=0)[:3500] if count in (256, 1) else "", flush=True)
        self.put("decode step", rows)

    def measure_prefill_step(self) -> None:
        """One step of 16 prompts of 1024 tokens, by kind of work."""
        engine = self.llm.engine
        engine._looks_ahead, looks_ahead = False, engine._looks_ahead  # so that the profiler sees one step, and all of it
        for request in zip(*workloads.prefill(seed=77, count=16)):
            engine.add_request(*request)
        profiled = profile_steps(engine, 1)
        engine._looks_ahead = looks_ahead
        print(json.dumps(profiled["top"], indent=0)[:3000], flush=True)
        self.put("prefill step", {"tokens": 16_384, **{f"{kind} ms": ms for kind, ms in profiled["by kind"].items()},
                                  "busy ms": profiled["busy"], "span ms": profiled["span"]})

    def measure_ablation(self) -> None:
        """Milliseconds a decode step of 128 sequences, with one part after another added to plain PyTorch."""
        from benchmarks.ablation import forms

        engine, rows = self.llm.engine, []
        for name, steps, take in forms(self.llm):
            sequences = [engine.add_request(*request) for request in zip(*workloads.steady(7, 128, 500))]
            while any(seq.num_uncomputed_tokens > 1 for seq in sequences) or engine.scheduler.waiting:
                engine.step()
            engine._looks_ahead = False
            while engine._in_flight:  # what it launched in its own form
                engine.step()
            take()
            engine.step()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(steps):
                engine.step()
            torch.cuda.synchronize()
            ms = (time.perf_counter() - began) / steps * 1e3
            rows.append({"engine": name, "ms a step": ms, "tok/s": 128 / ms * 1e3})
            for seq in sequences:
                engine.abort(seq.seq_id)
            while engine._in_flight:
                engine.step()
        self.put("ablation", rows)

    def measure_memory(self) -> None:
        runner = cast(ModelRunner, self.llm.engine.model_runner)
        model: Any = runner.model
        weights = sum(p.numel() * p.element_size() for p in {p.data_ptr(): p for p in model.model.parameters()}.values())
        cache = runner.num_blocks * runner.bytes_per_block
        free, total = torch.cuda.mem_get_info()
        self.put("memory", {"total": total, "weights": weights, "cache": cache, "blocks": runner.num_blocks,
                            "bytes a token": runner.bytes_per_block // runner.block_size, "free": free,
                            "allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved(),
                            "peak": torch.cuda.max_memory_allocated()})

    def measure_stretches(self) -> None:
        from benchmarks.stretches import rows

        self.close()  # the plain draw wants memory; and "memory", before this, tells of the engine alone
        self.put("stretches", rows(SimpleNamespace(**json.loads((self.folder / "config.json").read_text(encoding="utf-8")))))

    def record(self) -> None:
        record.record(self.llm, self.recorded)

    def measure_many(self) -> None:
        """1024 requests, and as many sequences at once."""
        self.close()
        with LLM(self.folder, max_num_seqs=1024) as llm:
            watch = Watch()
            generate(llm, workloads.one(seed=98, num_out=16))
            with watch.on(llm.engine):
                seconds, outputs = generate(llm, workloads.mixed(1024, seed=1))
            tokens = sum(len(out.token_ids) for out in outputs)
            full = [(e, g) for e, g, n in zip(watch.exposed, watch.gpu[1:], watch.rows[1:]) if n > 700]
            self.put("1024 requests", {
                "requests": "1024, 100-1024 tokens in, 100-1024 out", "output tokens": tokens, "output tok/s": tokens / seconds,
                "preemptions": llm.engine.scheduler.num_preemptions, "most sequences": max(watch.rows),
                "exposed ms above 700 sequences": statistics.median(e for e, _ in full) if full else None,
                "gpu ms above 700 sequences": statistics.median(g for _, g in full) if full else None, **watch.summary()})

    def _floor(self, contexts: list[int]) -> float:
        work = roofline.decode_work(self.llm.config.hf_config, contexts)
        return sum(part.floor(self.ceilings) for part in work.values()) * 1e3


SECTIONS = {"ceilings": Bench.measure_ceilings, "start": Bench.measure_start, "one": Bench.measure_one,
            "first": Bench.measure_first_token, "filtered": Bench.measure_filtered,
            "mixed": Bench.measure_mixed, "prefill": Bench.measure_prefill, "steps": Bench.measure_decode_steps,
            "prefill-step": Bench.measure_prefill_step, "watched": Bench.measure_mixed_watched,
            "shared": Bench.measure_shared, "ablation": Bench.measure_ablation, "memory": Bench.measure_memory,
            "record": Bench.record, "stretches": Bench.measure_stretches, "many": Bench.measure_many}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, of {','.join(SECTIONS)}")
    parser.add_argument("--model", type=Path, help="a folder of yours in place of random weights")
    parser.add_argument("--json", type=Path, help="the results file")
    parser.add_argument("--recorded", type=Path, default=record.RECORDED, help="the folder for recorded steps")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU; `python -m benchmarks cpu` compares on a CPU")
    wanted = args.only.split(",")
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"--only {','.join(unknown)}: sections are {', '.join(SECTIONS)}")
    file = args.json or machine.results_file(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.model or workloads.write_checkpoint(Path(folder) / "model", "cuda"), file, args.recorded)
        failed = []
        for name in wanted:
            began = time.perf_counter()
            try:
                SECTIONS[name](bench)
            except Exception as error:  # the other sections are worth having
                failed.append(name)
                print(f"{name} FAILED: {type(error).__name__}: {error}", flush=True)
                import traceback
                traceback.print_exc()
            print(f"  ({name} took {time.perf_counter() - began:.1f} s)", flush=True)
        bench.close()
    print(f"written to {file.name}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
