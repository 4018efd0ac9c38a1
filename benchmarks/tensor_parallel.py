"""One model on one GPU and split over two: tokens per second of many requests, and the time of one token of a lone request.

    python -m benchmarks.tensor_parallel                  # the table, and benchmarks/results/<gpu>-tensor-parallel.json
    python -m benchmarks.tensor_parallel --sizes 1 2 4    # more of them
    python -m benchmarks.tensor_parallel --device cpu     # a model small enough to try the script on anything

The model has the shape of Qwen3-8B and random weights in bfloat16, made on the device: its answers mean nothing, and
take as long as real ones. Every figure is the median of three runs after one that is not counted. A decode step of many
requests is what they take beyond their first tokens, divided by the tokens that follow.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_throughput import machine
from benchmarks.machine import results_file
from nanovllm import LLM, SamplingParams

QWEN3_8B = dict(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=151936, hidden_size=4096, intermediate_size=12288,
    num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, hidden_act="silu",
    max_position_embeddings=40960, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    tie_word_embeddings=False, attention_bias=False, use_sliding_window=False, dtype="bfloat16")  # fmt: skip
SMALL = QWEN3_8B | dict(vocab_size=4096, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
                        num_key_value_heads=2, head_dim=32)
RUNS = 3


def measure(folder: str, size: int, work: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """Both workloads on an engine of its own."""
    rng = random.Random(0)
    vocab_size = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["vocab_size"]

    def seconds(num_requests: int, num_prompt: int, num_output: int) -> float:
        """Of the whole; prompts are new every time, so that nothing of them is cached."""
        times = []
        for _ in range(1 + RUNS):
            prompts = [[rng.randrange(vocab_size) for _ in range(num_prompt)] for _ in range(num_requests)]
            params = SamplingParams(temperature=0.6, max_tokens=num_output, ignore_eos=True)
            began = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            times.append(time.perf_counter() - began)
            assert all(len(out.token_ids) == num_output for out in outputs)
        return statistics.median(times[1:])

    began = time.perf_counter()
    with LLM(folder, load_format="dummy", tensor_parallel_size=size, max_model_len=2048, max_num_seqs=work.requests,
             **settings) as llm:
        start = time.perf_counter() - began
        print(f"{llm!r}, started in {start:.1f} s", flush=True)
        many = seconds(work.requests, work.prompt, work.output)
        prompts = seconds(work.requests, work.prompt, 1)
        first, whole = seconds(1, work.prompt, 1), seconds(1, work.prompt, 1 + work.output)
        figures = {
            "ranks": size, "eager": settings.get("enforce_eager", False), "runner": repr(llm.engine.model_runner),
            "start_seconds": round(start, 1), "output_tokens_per_second": round(work.requests * work.output / many, 1),
            "total_tokens_per_second": round(work.requests * (work.prompt + work.output) / many, 1),
            "prompt_tokens_per_second": round(work.requests * work.prompt / prompts, 1),
            "milliseconds_per_decode_step": round(1000 * (many - prompts) / max(1, work.output - 1), 3),
            "milliseconds_per_token_alone": round(1000 * (whole - first) / work.output, 3),
            "milliseconds_to_first_token_alone": round(1000 * first, 2)}
    print(json.dumps(figures), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--output", type=int, default=256, help="tokens of each answer")
    parser.add_argument("--commit", help="what to note where there is no git")
    parser.add_argument("--json", type=Path, help="where to write the figures (default: the results folder)")
    work = parser.parse_args()
    shape = SMALL if work.device == "cpu" else QWEN3_8B
    device = torch.cuda.get_device_name() if work.device == "cuda" else "cpu"
    about = machine()
    figures = {"device": device, "torch": about["torch"], "date": about["date"], "commit": work.commit or about["commit"],
               "model": "Qwen3-8B's shape, random" if shape is QWEN3_8B else "a small random one",
               "requests": work.requests, "prompt_tokens": work.prompt, "output_tokens": work.output, "runs": RUNS,
               "tensor_parallel": []}
    file = work.json or results_file(f"{device} tensor parallel")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        for size in work.sizes:
            try:
                found = measure(folder, size, work, device=work.device, enforce_eager=work.eager)
            except RuntimeError as error:
                # Written down, and tried without what is the likeliest to fail.
                print("\n".join((str(error), *getattr(error, "__notes__", ()))), flush=True)
                figures["tensor_parallel"].append({"ranks": size, "eager": work.eager, "error": str(error)})
                file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
                if work.eager:
                    continue
                found = measure(folder, size, work, device=work.device, enforce_eager=True)
            figures["tensor_parallel"].append(found)
            file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
