"""The whole engine on one GPU: throughput, one request, prefill, start, and where the time of a step goes.

    python -m benchmarks                      # on a machine with a GPU: all of it, into benchmarks/results/<GPU>.json
    python -m benchmarks gpu --only one,mixed # some of it, into the same file
    python -m benchmarks gpu --shape 8B       # requests alone and together at another shape, into a file of its own

Random bf16 weights, of Qwen3-0.6B's shape unless told. Each figure stands beside its floor, computed from what this very
machine reads and multiplies per second, and beside the figures of nano-vllm and vLLM on an H200.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from benchmarks import gpu_requests, gpu_steps, machine, record, roofline, workloads
from benchmarks.gpu_bench import Bench
from nanovllm.config import OFFLINE_MODEL
from nanovllm.engine.model_runner import ModelRunner

COLD, WARM = "cold, with a tokenizer", "warm, with a tokenizer"
START = """
import time; began = time.perf_counter()
import sys
import nanovllm; from nanovllm import LLM, SamplingParams
import nanovllm.llm; imported = time.perf_counter()
llm = LLM(sys.argv[1]); built = time.perf_counter()
llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False); drawn = time.perf_counter()
import json; print(json.dumps({"import": imported - began, "construct": built - imported, "first tokens": drawn - built}))
"""


def measure_ceilings(bench: Bench) -> None:
    found = roofline.Ceilings.measure()
    torch.cuda.empty_cache()
    bench.put("ceilings", {"read B/s": found.read, "copy B/s": found.copy, "matmul FLOP/s": found.matmul})


def measure_start(bench: Bench) -> None:
    """A fresh process each: importing, constructing, and the first two tokens. The first finds Triton's cache empty, the
    others full. The random model's folder has no tokenizer; a user's has one."""
    rows = []
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cache:
        for file in (*bench.folder.iterdir(), *OFFLINE_MODEL.glob("tokenizer*")):
            link = Path(whole) / file.name
            if not link.exists():
                link.symlink_to(file)
        for when, folder in ((COLD, whole), (WARM, whole), ("warm, without a tokenizer", bench.folder)):
            ran = subprocess.run([sys.executable, "-c", START, str(folder)], capture_output=True, encoding="utf-8",
                                 env=os.environ | {"TRITON_CACHE_DIR": cache})
            if ran.returncode:
                raise RuntimeError(f"the engine did not start: {ran.stderr[-3000:]}")
            seconds = json.loads(ran.stdout.splitlines()[-1])
            rows.append({"start": when, "s": sum(seconds.values()), **seconds})
    bench.put("start", rows)


def measure_memory(bench: Bench) -> None:
    runner = cast(ModelRunner, bench.llm.engine.model_runner)
    model: Any = runner.model
    weights = sum(p.numel() * p.element_size() for p in {p.data_ptr(): p for p in model.model.parameters()}.values())
    cache = runner.num_blocks * runner.bytes_per_block
    free, total = torch.cuda.mem_get_info()
    bench.put("memory", {"total": total, "weights": weights, "cache": cache, "blocks": runner.num_blocks,
                         "bytes a token": runner.bytes_per_block // runner.block_size, "free": free,
                         "allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved(),
                         "peak": torch.cuda.max_memory_allocated()})


def measure_stretches(bench: Bench) -> None:
    from benchmarks.stretches import rows

    bench.close()  # the plain draw wants memory; and "memory", before this, tells of the engine alone
    shape = json.loads((bench.folder / "config.json").read_text(encoding="utf-8"))
    bench.put("stretches", rows(SimpleNamespace(**shape)))


def record_steps(bench: Bench) -> None:
    record.record(bench.llm, bench.recorded)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "ceilings": measure_ceilings, "start": measure_start, "one": gpu_requests.measure_one,
    "first": gpu_requests.measure_first_token, "filtered": gpu_requests.measure_filtered, "mixed": gpu_requests.measure_mixed,
    "prefill": gpu_requests.measure_prefill, "steps": gpu_steps.measure_decode_steps,
    "prefill-step": gpu_steps.measure_prefill_step, "watched": gpu_requests.measure_mixed_watched,
    "shared": gpu_requests.measure_shared, "ablation": gpu_steps.measure_ablation, "memory": measure_memory,
    "record": record_steps, "stretches": measure_stretches, "long": gpu_requests.measure_long,
    "many": gpu_requests.measure_many}
OF_A_SHAPE = "ceilings,one,first,mixed"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"sections, of {','.join(SECTIONS)} (all, and {OF_A_SHAPE} with --shape)")
    parser.add_argument("--model", type=Path, help="a folder of yours in place of random weights")
    parser.add_argument("--shape", choices=workloads.SHAPES, help="of a larger model, in place of Qwen3-0.6B's")
    parser.add_argument("--json", type=Path, help="the results file")
    parser.add_argument("--recorded", type=Path, default=record.RECORDED, help="the folder for recorded steps")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU; `python -m benchmarks cpu` compares on a CPU")
    wanted = (args.only or (OF_A_SHAPE if args.shape else ",".join(SECTIONS))).split(",")
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"--only {','.join(unknown)}: sections are {', '.join(SECTIONS)}")
    card = torch.cuda.get_device_name()
    file = args.json or machine.results_file(card)
    if args.shape and not args.json:
        file = file.parent / "shapes" / machine.results_file(f"{card} {args.shape}").name
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:  # its weights are made on the device
            bench = Bench(workloads.write_config(Path(folder), args.shape), file, load_format="dummy")
            bench.results["shape"] = args.shape
        else:
            bench = Bench(args.model or workloads.write_checkpoint(Path(folder) / "model", "cuda"), file, args.recorded)
        failed = []
        for name in wanted:
            began = time.perf_counter()
            try:
                SECTIONS[name](bench)
            except Exception as error:  # the other sections are worth having
                failed.append(name)
                print(f"{name} FAILED: {type(error).__name__}: {error}", flush=True)
                traceback.print_exc()
            print(f"  ({name} took {time.perf_counter() - began:.1f} s)", flush=True)
        bench.close()
    print(f"written to {file.name}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
