"""The command lines of `python -m nanovllm batch`, `serve --ray` and `simulate`; reading them needs no Ray, no torch and no web
framework."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from nanovllm.fleet.arrivals import TraceFile, Traffic
from nanovllm.fleet.extra import require
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.router import POLICIES
from nanovllm.server import KEY_VARIABLE, command
from nanovllm.server.command import ENGINE_SETTINGS
from nanovllm.utils.checks import check

SIMULATED = {"rate": (float, 20.0, "conversations that begin per second"),
             "requests": (int, 1000, "conversations in all"),
             "turns": (int, 1, "messages of each conversation"),
             "system-prompts": (int, 4, "different system prompts"),
             "system-tokens": (int, 512, "tokens of each"),
             "prompt-tokens": (int, 256, "mean tokens of a message"),
             "output-tokens": (int, 128, "mean tokens of an answer"),
             "burst": (float, 1.0, "rate in bursts over the rate outside them; 1 is Poisson"),
             "seed": (int, 0, "of the arrivals")}
KNOBS = {"replicas": (int, 2, "engines"), "prefill-replicas": (int, 0, "of them, those that only compute prompts"),
         "max-imbalance": (int, 8, "unfinished requests that a replica may have more than the least loaded one"),
         "max-num-seqs": (int, 512, "samples that may run at once in an engine"),
         "max-num-batched-tokens": (int, 16384, "tokens that one step may compute")}


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="in.jsonl", help="requests in the OpenAI batch format, one per line")
    parser.add_argument("target", type=Path, metavar="out.jsonl",
                        help="gets the answers; a file of an interrupted run is continued")
    parser.add_argument("--model", help="model folder (default: the offline model)")
    parser.add_argument("--keep-order", action="store_true", help="write the answers in the order of the requests")
    parser.add_argument("--ray", action="store_true", help="run on a Ray cluster (RAY_ADDRESS), or start Ray here")
    parser.add_argument("--replicas", type=int, default=1, help="with --ray: engines")
    parser.add_argument("--num-gpus", type=int, help="with --ray: GPUs per engine (default: 1 if the cluster has any)")
    for name, (kind, text) in ENGINE_SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=text)


def batch(source: Path, target: Path, model: str | None, keep_order: bool, ray: bool, replicas: int, num_gpus: int | None,
          **settings: Any) -> None:
    """Answer every request of a file. Raises ValueError for what cannot be served or is not of the format."""
    check(source.is_file(), "source", str(source), "a file", "name a file of requests, one JSON object per line")
    require("serve", "python -m nanovllm batch", "fastapi", "prometheus_client")
    if ray:
        require("fleet", "--ray", "ray")
        from nanovllm.fleet.batch import run_batch_on_ray
        from nanovllm.fleet.cluster import gpus_per_engine, least_and_most
        least_and_most(replicas)  # before Ray is started
        run_batch_on_ray(source, target, model, replicas=replicas, num_gpus=gpus_per_engine(num_gpus, replicas),
                         keep_order=keep_order, **settings)
        return
    check(replicas == 1, "replicas", replicas, "1 without --ray", "add --ray")
    from nanovllm.async_llm import AsyncLLM
    from nanovllm.fleet.batch_file import check_rows
    from nanovllm.fleet.batch_run import run_batch
    check_rows(source)  # before the model is loaded
    run_batch(source, target, AsyncLLM(model, **settings), keep_order=keep_order)


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Beside those of `nanovllm.server.command`."""
    group = parser.add_argument_group("fleet")
    group.add_argument("--ray", action="store_true", help="serve on a Ray cluster (RAY_ADDRESS), or start Ray here")
    group.add_argument("--replicas", default="1", metavar="N|LEAST-MOST",
                       help="with --ray: engines behind the address; a range scales with the queue")
    group.add_argument("--router", default="prefix_aware", choices=POLICIES, help="with --ray: which engine gets a request")
    group.add_argument("--num-gpus", type=int, default=argparse.SUPPRESS,
                       help="with --ray: GPUs per engine (default: 1 if the cluster has any)")


def serve(ray: bool, replicas: str, router: Any, model: str | None = None, api_key: str | None = None,
          num_gpus: int | None = None, **settings: Any) -> None:
    """Serve one engine in this process or, with `ray`, several. Raises ValueError for what cannot be served."""
    check(re.fullmatch(r"\d+(-\d+)?", replicas) is not None, "replicas", replicas, "a number, or two as in 1-4",
          "use --replicas 2")
    if not ray:
        check(replicas == "1", "replicas", replicas, "1 without --ray", "add --ray")
        return command.serve(model, api_key, **settings)
    require("serve", "--ray", "fastapi", "prometheus_client")
    require("fleet", "--ray", "ray")
    from nanovllm.fleet import serve as fleet

    first, _, last = replicas.partition("-")
    least, most = int(first), int(last or first)
    names = (*ENGINE_SETTINGS, "enforce_eager", "enable_prefix_caching", "speculative_config")
    engine_settings = {name: settings.pop(name) for name in names if name in settings}
    fleet.run(model, engine_settings, replicas=least if least == most else (least, most), router=router, num_gpus=num_gpus,
              api_key=os.environ.get(KEY_VARIABLE) if api_key is None else api_key, **settings)


def add_simulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    for name, (kind, default, text) in (SIMULATED | KNOBS).items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--router", default="prefix_aware", choices=POLICIES, help="which replica gets a request")
    parser.add_argument("--trace", type=Path, default=argparse.SUPPRESS,
                        help="replay a file of arrivals in Mooncake's format instead of drawing them")
    parser.add_argument("--results", type=Path, default=argparse.SUPPRESS,
                        help="a results file of `python -m benchmarks gpu` that says how long steps take (default: an H200's)")
    parser.add_argument("--perfetto", type=Path, default=argparse.SUPPRESS, metavar="FILE.json",
                        help="write the first steps and requests for https://ui.perfetto.dev")


def simulate(rate: float, requests: int, turns: int, system_prompts: int, system_tokens: int, prompt_tokens: int,
             output_tokens: int, burst: float, seed: int, replicas: int, prefill_replicas: int, router: Any, max_imbalance: int,
             max_num_seqs: int, max_num_batched_tokens: int, trace: Path | None = None, results: Path | None = None,
             perfetto: Path | None = None) -> None:
    """Print what a fleet would do with this traffic. Raises ValueError for traffic or a fleet that cannot be."""
    from nanovllm.fleet.cost_model import H200, CostModel
    from nanovllm.fleet.simulated_fleet import SimulatedFleet
    from nanovllm.utils.checkpoint import read_json

    for name, path in (("trace", trace), ("results", results)):
        check(path is None or path.is_file(), name, str(path), "a file", "name one that exists")
    check(perfetto is None or perfetto.absolute().parent.is_dir(), "perfetto", str(perfetto), "a file in a folder that exists",
          "make the folder")
    cost = H200 if results is None else CostModel.fit(read_json(results))
    traffic = TraceFile(trace, limit=requests) if trace else Traffic(
        rate=rate, num_conversations=requests, turns=turns, system_prompts=system_prompts, system_tokens=system_tokens,
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, burst=burst, seed=seed)
    fleet = SimulatedFleet(FleetConfig(
        num_replicas=replicas, prefill_replicas=prefill_replicas, router=router, max_imbalance=max_imbalance,
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens), cost=cost)
    report = fleet.run(traffic)
    print(report)
    if perfetto is not None:
        report.to_perfetto(perfetto)
        print(f"{perfetto}: the first {len(report.log)} requests and {len(report.steps)} steps")
