"""What the sections of `python -m benchmarks gpu` share: one engine, one file of results, and the machine's ceilings."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, record, roofline, workloads
from nanovllm import LLM


def generate(llm: LLM, requests: workloads.Requests) -> tuple[float, list[Any]]:
    torch.cuda.synchronize()
    began = time.perf_counter()
    outputs = llm.generate(*requests, use_tqdm=False)
    return time.perf_counter() - began, outputs


class Bench:
    """One engine for most sections, made when first needed. results: what goes to the file, section by section; settings: of
    the engine."""

    def __init__(self, folder: Path, file: Path, recorded: Path = record.RECORDED, **settings: Any):
        self._settings = settings
        self.folder, self.file, self.recorded = folder, file, recorded
        self.results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.results |= machine.gpu()
        self._llm: LLM | None = None

    @property
    def llm(self) -> LLM:
        if self._llm is None:
            self._llm = LLM(self.folder, **self._settings)
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

    def floor_ms(self, contexts: list[int]) -> float:
        """Of a step in which sequences of these lengths decode."""
        work = roofline.decode_work(self.llm.config.hf_config, contexts)
        return sum(part.floor(self.ceilings) for part in work.values()) * 1e3
