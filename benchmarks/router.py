"""`python -m benchmarks router`: two engines behind the router, 64 conversations with four system prompts.

The engines run the offline model in this process, each in a thread of its own. All policies are measured at the same time,
each with two engines: whatever else the machine does, it does to all of them, so that their times can be compared with each
other. The conversations, their times and lengths are the same for every policy, and the same again in the simulator, whose
step times are fitted to the steps that the engines took here.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import machine
from nanovllm import AsyncLLM, SamplingParams
from nanovllm.engine.listener import Step
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.arrivals import Arrival, Traffic
from nanovllm.fleet.cost_model import CostModel
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.router import Router
from nanovllm.fleet.simulated_fleet import SimulatedFleet

POLICIES = ("round_robin", "least_loaded", "prefix_aware")
BLOCKS, BLOCK_SIZE, VOCAB = 640, 16, 2048
TRAFFIC = Traffic(rate=1, num_conversations=64, system_prompts=4, system_tokens=512, prompt_tokens=32, output_tokens=24,
                  turns=3, think_seconds=2, seed=16)


@dataclass
class Served:
    """Of one request, seconds and tokens."""

    ttft: float
    prompt_tokens: int
    hit_tokens: int


class Watch:
    """What each step of an engine held, and how long it took."""

    one_step_at_a_time = True

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, float]] = []

    def joined(self, seq: Sequence) -> None: ...

    def ended(self, seq: Sequence) -> None: ...

    def stepped(self, step: Step) -> None:
        decodes = [item for item in step.batch.items if item.num_tokens == 1]
        prompt = sum(item.num_tokens for item in step.batch.items if item.num_tokens > 1)
        seconds = step.timestamps[-1] - step.timestamps[0]
        self.rows.append((len(decodes), sum(item.start + 1 for item in decodes), prompt, seconds))


def fit(rows: Ordered[tuple[int, int, int, float]]) -> CostModel:
    """A cost model of these steps: least squares over a fixed part, sequences that decode, keys and prompt tokens. What a
    decoding sequence costs is counted to its keys."""
    data = np.array(rows)
    parts = np.column_stack([np.ones(len(data)), data[:, 1], data[:, 2]])
    fixed, key, prompt = np.maximum(np.linalg.lstsq(parts, data[:, 3], rcond=None)[0], 1e-9)
    return CostModel(single_s=fixed, batch_s=fixed, batch_from=2, key_s=key, prompt_token_s=prompt, prompt_step_s=0.0,
                     kv_bytes=0, num_blocks=BLOCKS, block_size=BLOCK_SIZE)


async def converse(arrival: Arrival, engines: list[AsyncLLM], router: Router[int], loads: dict[int, int], began: float,
                   served: list[Served]) -> None:
    """One conversation from its first message to its last answer; token ids are folded into the model's vocabulary."""
    later: Arrival | None = arrival
    while later is not None:
        await asyncio.sleep(began + later.time - time.perf_counter())
        prompt = [token % VOCAB for token in later.prompt_token_ids]
        hashes = Sequence(0, prompt).block_hashes(BLOCK_SIZE)
        chosen = router.choose(hashes, loads).replica
        router.sent(chosen, hashes)
        loads[chosen] += 1
        params = SamplingParams(temperature=0, max_tokens=later.max_tokens, ignore_eos=True)
        output = await engines[chosen].generate(prompt, params)
        loads[chosen] -= 1
        first = output.outputs[0]
        assert first.timings is not None and first.timings.time_to_first_token is not None
        served.append(Served(first.timings.time_to_first_token, len(prompt), output.num_cached_tokens))
        later = later.next_turn(time.perf_counter() - began, list(first.token_ids))


async def start(watch: Watch) -> list[AsyncLLM]:
    """Two engines, warm and watched."""
    engines = [AsyncLLM(device="cpu", num_kvcache_blocks=BLOCKS, kvcache_block_size=BLOCK_SIZE) for _ in range(2)]
    await asyncio.gather(*(engine.generate([1, 2, 3], SamplingParams(max_tokens=4)) for engine in engines))
    for engine in engines:
        engine.llm.engine.attach(watch)
    return engines


async def run(policy: str, engines: list[AsyncLLM], began: float) -> list[Served]:
    router, loads, served = Router[int](policy, max_blocks=BLOCKS), {0: 0, 1: 0}, []  # type: ignore[arg-type, var-annotated]
    await asyncio.gather(*(converse(arrival, engines, router, loads, began, served) for arrival in TRAFFIC))
    return served


async def run_all(watch: Watch) -> dict[str, list[Served]]:
    """What every policy served, all at the same time, each with engines of its own."""
    engines = [await start(watch) for _ in POLICIES]
    began = time.perf_counter()
    served = await asyncio.gather(*(run(policy, own, began) for policy, own in zip(POLICIES, engines)))
    for engine in (each for own in engines for each in own):
        await engine.close()
    return dict(zip(POLICIES, served))


def row(policy: str, how: str, ttft: list[float], hit_rate: float, requests: int) -> dict[str, object]:
    return {"policy": policy, "how": how, "requests": requests, "hit rate": hit_rate, "TTFT mean s": statistics.mean(ttft),
            "TTFT p50 s": statistics.median(ttft), "TTFT p90 s": float(np.percentile(ttft, 90))}


def measure(rounds: int) -> list[dict[str, object]]:
    """A row per policy and way, the engines' figures over all rounds."""
    watch, measured = Watch(), {policy: list[Served]() for policy in POLICIES}
    for _ in range(rounds):
        for policy, served in asyncio.run(run_all(watch)).items():
            measured[policy] += served
    cost, rows = fit(watch.rows), []
    for policy in POLICIES:
        served = measured[policy]
        hits = sum(s.hit_tokens for s in served) / sum(s.prompt_tokens for s in served)
        rows.append(row(policy, "two engines", [s.ttft for s in served], hits, len(served)))
        report = SimulatedFleet(FleetConfig(num_replicas=2, num_blocks=BLOCKS, router=policy), cost=cost).run(TRAFFIC)  # type: ignore[arg-type]
        rows.append(row(policy, "simulated", list(report.requests["ttft"]), report.hit_rate, report.num_ended))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="times that all policies are measured")
    parser.add_argument("--json", type=Path, help="the results file")
    args = parser.parse_args(arguments)
    rows = measure(args.rounds)
    for r in rows:
        print("  ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{value}" for name, value in r.items()))
    file = args.json or machine.RESULTS / "router-cpu.json"
    file.write_text(json.dumps({"device": machine.cpu(), "commit": machine.commit(), **machine.versions(),
                                "work": "64 conversations of 3 turns, 4 system prompts of 512 tokens, 2 engines",
                                "rounds": args.rounds, "load_average": os.getloadavg()[0],
                                "router": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
