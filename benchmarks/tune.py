"""How the decode kernels are best cut on this GPU, measured where it counts: in the whole step, as a graph replays it.

    python -m benchmarks tune                 # the table, fastest first
    python -m benchmarks tune --json FILE     # and the figures, with the best of each in it

Tried are `Tuning` of `kernels/paged_decode.py` for many sequences, the tile of `kernels/paged_decode_few.py` for one, and the
weights and warps of `kernels/linear.py`. A kernel alone can mislead: in a step its neighbours share the GPU with it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from benchmarks import workloads
from benchmarks.roofline import seconds
from nanovllm import LLM
from nanovllm.engine.cuda_graphs import DecodeGraphs
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.kernels import linear, paged_decode, paged_decode_few, row_state
from nanovllm.kernels.filtered_draw import filtered_draw
from nanovllm.kernels.paged_decode import Tuning
from nanovllm.kernels.sample import draw
from nanovllm.kernels.token_bitmask import apply_bitmask
from nanovllm.layers.attention import select_backend
from nanovllm.models.fused import FusedModel
from nanovllm.models.qwen3 import Qwen3ForCausalLM

DECODE = [Tuning(*numbers) for numbers in ((64, 4, 3, 4), (64, 4, 5, 2), (64, 4, 5, 3), (64, 2, 5, 3), (64, 4, 7, 2),
                                           (32, 2, 5, 4), (128, 4, 3, 2), (32, 2, 5, 3), (32, 2, 3, 4))]
FEW = [(16384, 4, 3), (16384, 4, 4), (16384, 8, 3), (8192, 2, 4), (8192, 4, 3), (32768, 8, 3)]  # bytes of a tile, warps, stages
LINEAR = [(16384, 4), (8192, 2), (8192, 4), (4096, 1), (4096, 2), (16384, 8), (2048, 1)]
VARIANTS = len(DECODE) + len(FEW) + len(LINEAR)
MANY_SIZES, MANY_MEAN, ONE_MEAN = (256, 64, 16), 717, 384  # batch sizes, and mean contexts


def choose(decode: Tuning | None = None, few: tuple[int, int, int] | None = None,
           products: tuple[int, int] | None = None) -> None:
    """Have the kernels use these from the next capture on."""
    if decode:
        paged_decode.HALF = decode
    if few:
        paged_decode_few.TILE_BYTES, paged_decode_few.NUM_WARPS, paged_decode_few.NUM_STAGES = few
    if products:
        linear.CUTS = ((sys.maxsize, *products),)


def choose_variant(index: int) -> None:
    """The index-th of DECODE, FEW and LINEAR, one behind the other."""
    if index < len(DECODE):
        choose(decode=DECODE[index])
    elif index < len(DECODE) + len(FEW):
        choose(few=FEW[index - len(DECODE)])
    else:
        choose(products=LINEAR[index - len(DECODE) - len(FEW)])


@torch.inference_mode()
def compile_variant(index: int) -> None:
    """Run one variant on a single layer, so that its kernels are in Triton's cache on disk."""
    shape = SimpleNamespace(**workloads.SHAPE | {"num_hidden_layers": 1})
    backend = select_backend("triton", device="cuda", dtype=torch.bfloat16, head_dim=shape.head_dim, block_size=256)
    model = FusedModel(Qwen3ForCausalLM(shape, backend, device="cuda", dtype=torch.bfloat16))
    cache = torch.zeros(1, 2, 8, 256, shape.num_key_value_heads, shape.head_dim, dtype=torch.bfloat16, device="cuda")
    graphs = DecodeGraphs(model, draw, filtered_draw, apply_bitmask, row_state, cache, max_num_seqs=256, max_model_len=4096,
                          capture=False)
    choose_variant(index)
    for size in MANY_SIZES if index < len(DECODE) else (1,):
        graphs._step(size)
    torch.cuda.synchronize()


@torch.inference_mode()
def milliseconds(graphs: DecodeGraphs, size: int, mean: int) -> float:
    """A step of `size` sequences whose contexts are spread over 0.5 to 1.5 times the mean, replayed from a new graph."""
    state, block_size = graphs.state, graphs.block_size
    lengths = [round(mean * (0.5 + (i + 0.5) / size)) for i in torch.randperm(size).tolist()]
    state.cached[:size] = torch.tensor(lengths)
    num_blocks = graphs._kv_cache.shape[2]
    width = -(-(max(lengths) + 40) // block_size)
    state.block_tables[:size, :width] = torch.randperm(num_blocks, device="cuda")[: size * width].view(size, width).int()
    state.temperatures[:size] = 0.6
    graphs._step(size)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphs._step(size)
    return seconds(graph.replay, 15) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile is not None:
        return compile_variant(args.compile)
    command = [sys.executable, "-m", "benchmarks.tune", "--compile"]
    running = [subprocess.Popen([*command, str(i)], env=os.environ | {"OMP_NUM_THREADS": "1"})
               for i in range(VARIANTS)]
    with tempfile.TemporaryDirectory() as folder:
        model = workloads.write_checkpoint(Path(folder) / "model", "cuda")
        codes = [process.wait() for process in running]
        print(f"compiled {codes.count(0)} of {len(codes)} variants", flush=True)
        with LLM(model, enforce_eager=True, max_num_seqs=256) as llm:
            runner = cast(ModelRunner, llm.engine.model_runner)
            runner.kv_cache.normal_()  # zeros would be read faster than what a cache really holds
            graphs = runner.decode_graphs(llm.config, capture=False)
            found: dict[str, Any] = {"decode": [], "few": [], "linear": []}
            for tuning, code in zip(DECODE, codes):
                if code == 0:
                    choose(decode=tuning)
                    times = {f"{size} sequences, ms": milliseconds(graphs, size, MANY_MEAN) for size in MANY_SIZES}
                    found["decode"].append({"tuning": list(tuning), **times})
                    print(found["decode"][-1], flush=True)
            many = min(found["decode"], key=lambda row: sum(row[f"{size} sequences, ms"] for size in MANY_SIZES))
            choose(decode=Tuning(*many["tuning"]))
            for few, code in zip(FEW, codes[len(DECODE):]):
                if code == 0:
                    choose(few=few)
                    found["few"].append({"tile bytes, warps, stages": list(few), "ms": milliseconds(graphs, 1, ONE_MEAN)})
                    print(found["few"][-1], flush=True)
            one = min(found["few"], key=lambda row: row["ms"])
            choose(few=tuple(one["tile bytes, warps, stages"]))
            for products, code in zip(LINEAR, codes[len(DECODE) + len(FEW):]):
                if code == 0:
                    choose(products=products)
                    ms = milliseconds(graphs, 1, ONE_MEAN)
                    found["linear"].append({"weights": products[0], "warps": products[1], "ms": ms})
                    print(found["linear"][-1], flush=True)
    found["best"] = {"many": many["tuning"], "few": one["tile bytes, warps, stages"],
                     "linear": min(found["linear"], key=lambda row: row["ms"])}
    print(json.dumps(found["best"]))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
