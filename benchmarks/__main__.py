"""`python -m benchmarks`: measure this machine, by its GPU if it has one.

    python -m benchmarks             the whole engine on the GPU; without one, beside transformers on the CPU
    python -m benchmarks serve       a load test of an OpenAI server
    python -m benchmarks structured  what an answer's shape costs
    python -m benchmarks gpu|cpu|fleet|router|attention|record|tune|families|explorers ...    one of them, with its own options
"""

import sys
from importlib import import_module

import torch

PARTS = {"gpu": "benchmarks.gpu", "cpu": "benchmarks.cpu_throughput", "attention": "benchmarks.attention",
         "serve": "benchmarks.serve", "fleet": "benchmarks.fleet", "router": "benchmarks.router",
         "record": "benchmarks.record", "tune": "benchmarks.tune", "table": "benchmarks.table",
         "families": "benchmarks.families", "explorers": "benchmarks.explorers", "structured": "benchmarks.structured"}


def main(argv: list[str] | None = None) -> None:
    if argv is not None:
        sys.argv[1:] = argv
    part = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in PARTS else "gpu" if torch.cuda.is_available() else "cpu"
    import_module(PARTS[part]).main()


if __name__ == "__main__":
    main()
