"""Steps of the engine on this GPU, recorded with every kernel, for readers who have none.

    python -m benchmarks record    # writes chapters/recorded/*.trace, which nanovllm.tracing.trace.Trace.load opens

decode_eager and decode_graph: the same decode steps of 32 sequences, launched kernel by kernel and replayed from a graph.
served_run: a few requests from arrival to end, chunks and decode steps mixed.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch

from benchmarks import machine, workloads
from nanovllm import LLM, SamplingParams
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.tracing.trace import Trace

RECORDED = Path(__file__).parents[1] / "chapters" / "recorded"
LONGEST_NAME = 60  # of a kernel: what cuBLAS and templates add beyond tells nothing


@contextmanager
def _recording(llm: LLM, file: Path) -> Iterator[None]:
    with llm.trace(profile=True) as trace:
        yield
    for operation in trace.operations:
        operation["name"] = operation["name"][:LONGEST_NAME]
        operation["time"], operation["duration"] = round(operation["time"], 7), round(operation["duration"], 7)
    trace.meta |= machine.gpu()
    first = min(record.time for record in trace)
    Trace(trace.meta, trace.records, [o for o in trace.operations if o["time"] >= first]).save(file)
    print(f"{file.name}: {trace!r}, {len(trace.operations)} operations, {file.stat().st_size / 1024:.0f} KiB")


def record(llm: LLM, folder: Path = RECORDED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    engine, runner = llm.engine, cast(ModelRunner, llm.engine.model_runner)
    graphs = runner.graphs
    for name, form in (("decode_eager", None), ("decode_graph", graphs)):
        runner.reset()
        runner.graphs = form
        sequences = [engine.add_request(*request) for request in zip(*workloads.steady(5, 32, 300))]
        for _ in range(12):
            engine.step()
        with _recording(llm, folder / f"{name}.trace"):
            for _ in range(6):
                engine.step()
        for seq in sequences:
            engine.abort(seq.seq_id)
        while engine.has_unfinished or engine._in_flight:
            engine.step()
    runner.graphs = graphs
    prompts, _ = workloads.shared_prompt(6, 10)
    params = [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=4 + 2 * i) for i in range(10)]
    with _recording(llm, folder / "served_run.trace"):
        for i in range(0, 10, 2):  # two arrive every third step
            for request in zip(prompts[i:i + 2], params[i:i + 2]):
                engine.add_request(*request)
            for _ in range(3):
                engine.step()
        while engine.has_unfinished:
            engine.step()


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this records a GPU at work, and there is none here; chapters show the recorded run")
    with tempfile.TemporaryDirectory() as folder:
        with LLM(workloads.write_checkpoint(Path(folder) / "model", "cuda")) as llm:
            record(llm)


if __name__ == "__main__":
    main()
