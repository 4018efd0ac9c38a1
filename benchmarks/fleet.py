"""`python -m benchmarks fleet`: fit the simulator's cost model to a results file, and say how far off it is.

    python -m benchmarks fleet [--results FILE.json]

The model is fitted to single steps. Whole runs are then simulated with the real scheduler, block manager and router, and
their throughput is compared with the recorded one, to which nothing was fitted.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine, workloads
from nanovllm.fleet.arrivals import Arrival
from nanovllm.fleet.cost_model import CostModel, decode_steps
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.simulated_fleet import SimulatedFleet

# The recording to which the model that is shipped was fitted; of a commit at which a step with a prompt ran without a graph.
RECORDED = machine.RESULTS / "earlier" / "nvidia-h200.json"
Row = tuple[str, float, float]  # what, recorded, predicted


def step_errors(model: CostModel, results: Mapping[str, Any]) -> list[Row]:
    """Milliseconds of the recorded steps."""
    rows = [(f"decode, {n} x {keys // n} keys, ms", seconds * 1e3, model.seconds(n, keys, 0) * 1e3)
            for n, keys, seconds in decode_steps(results)]
    tokens = results["prefill step"]["tokens"]
    rows.append((f"prefill, {tokens} tokens, ms", results["prefill, watched"]["gpu ms a step"],
                 model.seconds(0, 0, tokens) * 1e3))
    return rows


def run_errors(model: CostModel, results: Mapping[str, Any]) -> list[Row]:
    """Tokens per second of the recorded runs: each with the same requests, in one engine with the same limits."""
    runs = [("256 requests", "mixed", workloads.mixed(256), 512),
            ("1024 requests", "1024 requests", workloads.mixed(1024, 1), 1024),
            ("256 behind one system prompt", "shared prompt", workloads.shared_prompt(1), 512)]
    rows = []
    for name, section, (prompts, params), max_num_seqs in runs:
        if section in results:
            arrivals = [Arrival(0.0, prompt, p.max_tokens, i) for i, (prompt, p) in enumerate(zip(prompts, params))]
            report = SimulatedFleet(FleetConfig(num_replicas=1, max_num_seqs=max_num_seqs), cost=model).run(arrivals)
            rows.append((f"{name}, output tok/s", results[section]["output tok/s"], report.output_tokens_per_s))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RECORDED, help="a file of benchmarks gpu")
    results = json.loads(parser.parse_args(arguments).results.read_text(encoding="utf-8"))
    model = CostModel.fit(results)
    print(f"{results.get('device', 'unknown device')}, commit {results.get('commit', 'unknown')}\n{model}\n")
    print(f"{'':46}{'recorded':>12}{'predicted':>12}{'error':>9}")
    for name, recorded, predicted in [*step_errors(model, results), *run_errors(model, results)]:
        print(f"{name:46}{recorded:12,.2f}{predicted:12,.2f}{predicted / recorded - 1:+9.1%}")


if __name__ == "__main__":
    main()
