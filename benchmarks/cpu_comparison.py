"""This engine on a CPU beside others, each in a process of its own, in turn: chats, eight streams and one stream.

Called as `python -m benchmarks cpu --others` (what is installed of transformers, openvino-genai and llama.cpp) and
`--against CHECKOUT` (this project at another commit, say `git worktree add ../old 6046efd`).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gguf_export import write_gguf
from benchmarks.workloads import write_checkpoint

CHILD = Path(__file__).with_name("cpu_engines.py")
ROOT = Path(__file__).parents[1]
Requests = list[tuple[list[int], int]]


class Engine:
    """One engine's process. `label` is its row's name; version: what it says of itself."""

    def __init__(self, label: str, kind: str, checkout: Path | None = None, **settings: Any):
        self.label = label
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout or ROOT), *sys.path[1:]]),
                                    "OMP_NUM_THREADS": str(settings["threads"])}
        self._process = subprocess.Popen([sys.executable, str(CHILD), kind, json.dumps(settings)], env=environment,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.version: str = self._answer()["version"]

    def run(self, requests: Requests) -> dict[str, Any]:
        """`wall` and `processor` seconds, and the `tokens`, which are as many as asked for. Raises EngineEnded."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"requests": requests}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # what it has to say comes below
        told = self._answer()
        made = [len(tokens) for tokens in told["tokens"]]
        if made != [n for _, n in requests]:
            raise EngineEnded(f"{self.label} made {made} tokens, not {[n for _, n in requests]}: its figures mean nothing")
        print(f"  {self.label}: {told['wall']:.3f} s, {told['processor']:.2f} of the processor", file=sys.stderr, flush=True)
        return told

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:  # it has threads that do not end
            self._process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineEnded(f"{self.label} ended with {self._process.wait()}; its own words stand above")
        answer: dict[str, Any] = json.loads(line)
        return answer


class EngineEnded(Exception):
    """An engine that cannot be measured here, and why."""


def engines(model: Path, scratch: Path, threads: int, others: bool, against: Path | None, llama_server: str) -> list[Engine]:
    """All that are to be measured, ours first. One that is not there, or does not start, is said and left out."""
    own: dict[str, Any] = {"model": str(model), "threads": threads, "dtype": "float32"}
    cpu, plain = {"attention_backend": "cpu"}, {"attention_backend": "torch"}
    wanted: list[tuple[str, str, Path | None, dict[str, Any]]] = [
        ("nanovllm, float32", "nanovllm", None, own | cpu),
        ("nanovllm, bfloat16", "nanovllm", None, own | cpu | {"dtype": "bfloat16"}),
        ("nanovllm, plain PyTorch", "nanovllm", None, own | plain)]
    if against is not None:
        wanted.append((f"nanovllm at {_commit_of(against)}, float32", "nanovllm", against, own))
    if others:
        if find_spec("openvino_genai"):
            half = {"model": str(scratch / "float16.gguf"), "threads": threads}  # which it reads, and not float32
            write_gguf(model, scratch / "float16.gguf", torch.float16)
            wanted += [("openvino-genai, its own precision", "openvino-genai", None, half),
                       ("openvino-genai, float32", "openvino-genai", None, half | {"precision": "f32"})]
        else:
            print("openvino-genai: not installed (pip install --group others), left out")
        program = shutil.which(llama_server)
        if program or find_spec("xllamacpp"):
            write_gguf(model, scratch / "float32.gguf")
            wanted.append(("llama.cpp, float32", "llama.cpp", None,
                           {"model": str(scratch / "float32.gguf"), "threads": threads, "program": program}))
        else:
            print(f"llama.cpp: no program {llama_server!r} (--llama-server PROGRAM), and xllamacpp is not installed "
                  "(pip install --group others); left out")
        wanted.append(("transformers, float32", "transformers", None, own))
    found = []
    for label, kind, checkout, settings in wanted:
        try:
            found.append(Engine(label, kind, checkout, **settings))
        except EngineEnded as error:
            print(f"{error}; left out")
    return found


def _commit_of(checkout: Path) -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, encoding="utf-8")
    return asked.stdout.strip() if asked.returncode == 0 else checkout.name


def compare(model: Path, chats: Requests, runs: int, threads: int, others: bool = False, against: Path | None = None,
            llama_server: str = "llama-server") -> dict[str, Any]:
    """Every engine has the same work in turn, `runs` times after a warm-up: by label, lists of seconds and equal texts."""
    works: dict[str, Requests] = {"one stream": [(chats[-1][0], 128)], "8 streams": [(prompt, 64) for prompt, _ in chats[:8]],
                                  "64 chats": chats}
    with tempfile.TemporaryDirectory() as scratch:
        rows = engines(model, Path(scratch), threads, others, against, llama_server)
        result: dict[str, Any] = {"versions": {engine.label: engine.version for engine in rows}, "works": {}}

        def told_by(engine: Engine, requests: Requests) -> list[dict[str, Any]]:
            try:
                return [engine.run(requests)]
            except EngineEnded as error:
                print(f"{error}; left out from here on")
                rows.remove(engine)
                return []

        try:
            for engine in [*rows]:
                told_by(engine, [(prompt[::-1], 4) for prompt, _ in chats[:16]])
            for name, requests in works.items():
                told: dict[str, list[dict[str, Any]]] = {engine.label: [] for engine in rows}
                for _ in range(runs):
                    for engine in [*rows]:
                        told[engine.label] += told_by(engine, requests)
                texts = told[rows[0].label][0]["tokens"]
                result["load"] = os.getloadavg()[0]  # who shares the machine: seconds by the wall's clock mean little above 3
                result["works"][name] = {"tokens": sum(n for _, n in requests)} | {label: {
                    "wall": [run["wall"] for run in of], "processor": [run["processor"] for run in of],
                    "same texts": sum(map(list.__eq__, of[-1]["tokens"], texts))}
                    for label, of in told.items() if len(of) == runs}
        finally:
            for engine in rows:
                engine.close()
    return result


def table(result: dict[str, Any]) -> str:
    """Tokens per second by the wall's clock, the processor's seconds, and how many times the first row each takes."""
    lines = []
    for name, work in result["works"].items():
        rows = {label: row for label, row in work.items() if label != "tokens"}
        first, *_ = rows.values()
        lines.append(f"{name}: {work['tokens']} tokens\n{'':38}{'tokens/s':>9}{'seconds':>9}{'times':>7}{'CPU s':>8}"
                     f"{'times':>7}  same texts   runs")
        for label, row in rows.items():
            wall, processor = statistics.median(row["wall"]), statistics.median(row["processor"])
            ratio, of_processor = (statistics.median(b / a for a, b in zip(first[clock], row[clock], strict=True))
                                   for clock in ("wall", "processor"))
            lines.append(f"{label:38}{work['tokens'] / wall:9.0f}{wall:9.3f}{ratio:7.2f}{processor:8.2f}{of_processor:7.2f}"
                         f"{row['same texts']:12}   " + " ".join(f"{s:.3f}" for s in row["wall"]))
    return "\n".join(lines)


def memory_speed(threads: int, gibibytes: float = 1.0) -> float:
    """Bytes a second that this many threads read from memory, adding up integers: the best of ten times."""
    torch.set_num_threads(threads)
    numbers = torch.ones(int(gibibytes * 2**30) // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return numbers.nbytes / best


def against_memory(threads: int, tokens: int = 64, **shape: Any) -> dict[str, float]:
    """One stream of a Qwen3-0.6B shape in bfloat16: seconds per token, and what reading every weight once takes at least."""
    from nanovllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Path(scratch), **shape)
        torch.set_num_threads(threads)
        with LLM(folder, device="cpu", dtype="bfloat16", attention_backend="cpu", max_model_len=512) as llm:
            size = (folder / "model.safetensors").stat().st_size
            seconds, speeds = [], []
            prompt = list(range(16))
            for _ in range(4):
                speeds.append(memory_speed(threads))
                of_length = []
                for n in (1, 1 + tokens):
                    started = time.perf_counter()
                    llm.generate([prompt], SamplingParams(temperature=0, max_tokens=n, ignore_eos=True), use_tqdm=False)
                    of_length.append(time.perf_counter() - started)
                seconds.append((of_length[1] - of_length[0]) / tokens)
            per_token, speed = min(seconds), max(speeds)
    print(f"{size / 1e9:.2f} GB of weights, memory {speed / 1e9:.1f} GB/s: {per_token * 1e3:.1f} ms a token, "
          f"{size / speed / per_token:.0%} of the memory's speed")
    return {"weights, GB": size / 1e9, "memory, GB/s": speed / 1e9, "ms a token": per_token * 1e3,
            "share of memory's speed": size / speed / per_token}
