"""Attention alone on one GPU: how near each backend comes to what memory (decode) and arithmetic (prefill) allow.

    python -m benchmarks.attention                      # the table
    python -m benchmarks.attention --sweep              # and the Triton decode kernel's tile, warps, stages and programs
    python -m benchmarks.attention --json results.json  # and the figures in a file

Shapes are Qwen3-0.6B's: 16 query heads, 8 key/value heads, head size 128, bfloat16, blocks of 256 tokens, and 28 layers,
each with a cache of its own: one after another in a CUDA graph, as a step of the model reads them, so that no cache is
warm from the call before and no launch is waited for. Decode is rated by the bytes of keys and values it must read,
prefill by the operations of the causal half.
"""

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import gpu
from benchmarks.roofline import Ceilings, seconds
from nanovllm.layers.attention import AttentionBackend, select_backend
from nanovllm.utils.context import Context

LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 28, 16, 8, 128, 256
DTYPE = torch.bfloat16
SCALE = HEAD_DIM**-0.5
DECODE = [(256, 700), (64, 700), (16, 700), (1, 700), (1, 4000)]  # sequences, mean context length
PREFILL = [(64, 1024, 1024), (1, 4096, 4096), (16, 512, 2048)]  # sequences, new tokens, context length


def milliseconds(attend: Callable[..., object], caches: torch.Tensor, repeat: int = 10) -> float:
    """Time on the GPU of `attend(k_cache, v_cache)`, from replays of a graph in which every layer's cache has its turn."""
    attend(*caches[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for cache in caches:
            attend(*cache)
    return seconds(graph.replay, repeat) / len(caches) * 1e3


def batch(sequences: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, Context]:
    """q, the layers' caches and the context of (new tokens, context length) each, blocks scattered over the cache."""
    counts = [-(-length // BLOCK_SIZE) for _, length in sequences]
    tables = torch.zeros(len(sequences), max(counts), dtype=torch.int32)
    for row, blocks in zip(tables, torch.randperm(sum(counts)).split(counts), strict=True):
        row[: len(blocks)] = blocks
    lengths = torch.tensor([length for _, length in sequences], dtype=torch.int32)
    new = torch.tensor([0] + [n for n, _ in sequences])
    decoding = all(n == 1 for n, _ in sequences)
    context = Context(
        cu_seqlens_q=new.cumsum(0).int().cuda(),
        context_lens=lengths.cuda(),
        block_tables=tables.cuda(),
        slot_mapping=torch.empty(0, dtype=torch.int64, device="cuda"),
        max_seqlen_q=int(new.max()),
        max_seqlen_k=int(lengths.max()),
        num_decodes=len(sequences) if decoding else 0,
        last_rows=torch.empty(0, dtype=torch.int64, device="cuda"),
    )
    q = torch.randn(int(new.sum()), NUM_HEADS, HEAD_DIM, dtype=DTYPE, device="cuda")
    caches = torch.empty(LAYERS, 2, sum(counts), BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, dtype=DTYPE, device="cuda").normal_()
    return q, caches, context


def decode_batch(num_seqs: int, mean: int) -> tuple[torch.Tensor, torch.Tensor, Context]:
    """Context lengths spread evenly over 0.5 to 1.5 times the mean, in random order."""
    spread = torch.linspace(0.5 * mean, 1.5 * mean, num_seqs) if num_seqs > 1 else torch.tensor([float(mean)])
    return batch([(1, int(length)) for length in spread[torch.randperm(num_seqs)]])


def bytes_read(context: Context) -> int:
    return int(context.context_lens.sum()) * 2 * NUM_KV_HEADS * HEAD_DIM * DTYPE.itemsize


def causal_flops(context: Context) -> int:
    """Two matrix products over the keys each query sees."""
    queries = context.cu_seqlens_q.diff().long()
    seen = queries * context.context_lens - queries * (queries - 1) // 2
    return int(seen.sum()) * 4 * NUM_HEADS * HEAD_DIM


def backends() -> list[AttentionBackend]:
    found = []
    for name in ("triton", "flash_attn"):
        try:
            found.append(select_backend(name, device="cuda", dtype=DTYPE, head_dim=HEAD_DIM, block_size=BLOCK_SIZE))
        except ValueError as reason:
            print(f"without {name}: {reason}")
    return found


def measure() -> list[dict[str, Any]]:
    rows = []
    for backend in backends():
        def milliseconds_of(q: torch.Tensor, caches: torch.Tensor, context: Context,
                            backend: AttentionBackend = backend) -> float:
            return milliseconds(lambda k_cache, v_cache: backend.attend(q, k_cache, v_cache, context, SCALE), caches)

        for num_seqs, mean in DECODE:
            q, caches, context = decode_batch(num_seqs, mean)
            ms = milliseconds_of(q, caches, context)
            rate = bytes_read(context) / ms / 1e9
            rows.append({"work": f"decode {num_seqs} x ~{mean}", "backend": backend.name, "ms": ms, "TB/s": rate})
        for num_seqs, new, length in PREFILL:
            q, caches, context = batch([(new, length)] * num_seqs)
            ms = milliseconds_of(q, caches, context)
            rate = causal_flops(context) / ms / 1e9
            work = f"prefill {num_seqs} x {new} of {length}"
            rows.append({"work": work, "backend": backend.name, "ms": ms, "TFLOP/s": rate})
    return rows


def sweep(num_seqs: int, mean: int) -> list[dict[str, Any]]:
    """The Triton decode kernel cut and scheduled every way worth trying, fastest first."""
    from triton.runtime.errors import OutOfResources

    from nanovllm.kernels.paged_decode import Tuning, paged_decode

    q, caches, context = decode_batch(num_seqs, mean)
    out, rows = torch.empty_like(q), []
    for tile, warps, stages, programs in product((32, 64, 128), (2, 4, 8), (3, 5, 7), (1, 2, 3, 4)):
        tuning = Tuning(tile, warps, stages, programs)

        def call(k_cache: torch.Tensor, v_cache: torch.Tensor, tuning: Tuning = tuning) -> None:
            paged_decode(q, k_cache, v_cache, context.block_tables, context.context_lens, SCALE, out, tuning=tuning)

        try:
            ms = milliseconds(call, caches)
        except OutOfResources:
            continue
        rows.append({**tuning._asdict(), "ms": ms, "TB/s": bytes_read(context) / ms / 1e9})
    return sorted(rows, key=lambda row: row["ms"])


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="also try every tuning of the Triton decode kernel")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU; attention on a CPU is timed by the engine benchmarks")
    torch.manual_seed(0)
    ceilings = Ceilings.measure()
    results = gpu() | {"copy TB/s": ceilings.copy / 1e12, "read TB/s": ceilings.read / 1e12, "rows": measure()}
    show(f"{results['device']}, torch {results['torch']}, read {results['read TB/s']:.2f} TB/s", results["rows"])
    if args.sweep:
        results["sweep"] = {f"{n} x ~{mean}": sweep(n, mean) for n, mean in ((256, 700), (1, 4000))}
        for title, rows in results["sweep"].items():
            show(f"Triton decode, {title}, fastest first", rows[:12])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
