"""Other families than Qwen3 on this GPU: a decode step and a prompt, beside the least time that the card allows.

    python -m benchmarks families              # the table
    python -m benchmarks families --json FILE  # and the figures

Shapes with random weights: two dense ones of released models, and layers of Qwen3-30B-A3B, as many as leave room for a cache.
A step is replayed from a CUDA graph, for contexts spread about a mean. Its floor is what it must read: the weights, of the
experts those that the tokens can be expected to choose if they choose at random, and the cache.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import machine
from benchmarks.roofline import Ceilings, Work, decode_work
from benchmarks.tune import milliseconds
from nanovllm import LLM, SamplingParams

SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": dict(
        architectures=["LlamaForCausalLM"], vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131_072, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_theta=5e5, rope_scaling=dict(
            rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)),
    "Qwen2.5-1.5B": dict(
        architectures=["Qwen2ForCausalLM"], vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32_768, rms_norm_eps=1e-6,
        tie_word_embeddings=True, rope_theta=1e6),
    "Qwen3-30B-A3B, 12 of 48 layers": dict(
        architectures=["Qwen3MoeForCausalLM"], vocab_size=151_936, hidden_size=2048, intermediate_size=6144,
        num_hidden_layers=12, num_attention_heads=32, num_key_value_heads=4, head_dim=128, max_position_embeddings=40_960,
        rms_norm_eps=1e-6, tie_word_embeddings=False, rope_theta=1e6, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, norm_topk_prob=True),
}
SIZES = {1: 384, 16: 717, 64: 717, 256: 717}  # batch size: mean context
PROMPT_TOKENS, PROMPTS = 1024, 16


def step_floor(shape: SimpleNamespace, contexts: list[int], ceilings: Ceilings) -> float:
    """Seconds of one decode step, each kind of work at its ceiling."""
    work = decode_work(shape, contexts)
    if hasattr(shape, "num_experts"):
        expert, tokens = 3 * shape.hidden_size * shape.moe_intermediate_size, len(contexts)
        read = shape.num_experts * (1 - (1 - shape.num_experts_per_tok / shape.num_experts) ** tokens)
        dense = decode_work(SimpleNamespace(**vars(shape) | {"intermediate_size": 0}), contexts)["layer matmuls"]
        work["layer matmuls"] = dense
        work["experts"] = Work(2 * expert * read * shape.num_hidden_layers,
                               2 * expert * shape.num_experts_per_tok * tokens * shape.num_hidden_layers)
    return sum(part.floor(ceilings) for part in work.values())


def prompt_flops(shape: SimpleNamespace) -> float:
    """Operations of a step of PROMPTS prompts of PROMPT_TOKENS tokens each."""
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    inner = shape.intermediate_size
    if hasattr(shape, "num_experts"):
        inner = shape.moe_intermediate_size * shape.num_experts_per_tok
    layer = shape.hidden_size * (2 * q + 2 * kv + 3 * inner)
    tokens, pairs = PROMPTS * PROMPT_TOKENS, PROMPTS * PROMPT_TOKENS * (PROMPT_TOKENS + 1) / 2
    return float(shape.num_hidden_layers * (2 * layer * tokens + 4 * q * pairs))


@torch.inference_mode()
def measure(name: str, folder: Path, ceilings: Ceilings) -> dict[str, Any]:
    """Decode steps of every size and one step of prompts, in ms, each with its floor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"} | SHAPES[name]), encoding="utf-8")
    found: dict[str, Any] = {}
    with LLM(folder, load_format="dummy", enforce_eager=True, max_num_seqs=256, max_model_len=4096) as llm:
        runner: Any = llm.engine.model_runner
        shape, prompts = llm.config.hf_config, [[(7 * i + j) % 10_000 for j in range(PROMPT_TOKENS)] for i in range(PROMPTS)]
        for attempt in range(3):  # the first compiles
            fresh = [[attempt, *prompt[1:]] for prompt in prompts]
            torch.cuda.synchronize()
            began = time.perf_counter()
            llm.generate(fresh, SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
            took = time.perf_counter() - began
        found["prompts"] = {"ms": took * 1e3, "floor": prompt_flops(shape) / ceilings.matmul * 1e3}
        runner.kv_cache.normal_()
        graphs = runner.decode_graphs(llm.config, capture=False)
        for size, mean in SIZES.items():
            contexts = [round(mean * (0.5 + (i + 0.5) / size)) for i in range(size)]
            found[str(size)] = {"ms": milliseconds(graphs, size, mean), "floor": step_floor(shape, contexts, ceilings) * 1e3}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=SHAPES, nargs="+", default=list(SHAPES), help="these shapes")
    args = parser.parse_args()
    ceilings, figures = Ceilings.measure(), {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measure(name, Path(folder) / "model", ceilings)
        for what, row in figures[name].items():
            share = row["floor"] / row["ms"]
            print(f"{name:32} {what:>8} {row['ms']:8.3f} ms, floor {row['floor']:8.3f} ms, {share:.0%}", flush=True)
        if args.json:
            args.json.write_text(json.dumps({"machine": machine.gpu(), "figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
