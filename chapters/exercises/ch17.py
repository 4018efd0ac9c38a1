"""Chapter 17: how many engines, a router that beats round robin, and the load that a fleet can carry."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec

from nanovllm.fleet.arrivals import Arrival, Traffic
from nanovllm.fleet.cost_model import H200
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.fleet_report import FleetReport
from nanovllm.fleet.router import Choice
from nanovllm.fleet.simulated_fleet import SimulatedFleet

from .recorded import RESULTS
from .tables import Table
from .verdict import check, require

# An estimate, not a measurement: 32 billion bf16 parameters on one H200. 64 GB are read in 15 ms, a prompt token's 64 GFLOP
# take 0.13 ms at 500 TFLOP/s, and 64 layers of 8 KV heads keep 262,144 bytes per token, which are read in 60 ns.
LARGER = replace(H200, single_s=0.015, batch_s=0.015, key_s=6e-8, prompt_token_s=1.3e-4, prompt_step_s=0.02, kv_bytes=262_144,
                 num_blocks=890)
BLOCK_MS, WAIT_MS = 33, 20  # of a block of 256 prompt tokens; of a request in front of a newcomer, a guess
CHATS = Traffic(rate=7, num_conversations=160, system_prompts=8, system_tokens=2048, prompt_tokens=200, output_tokens=120,
                turns=3, think_seconds=3, seed=17)


class Adapted:
    """A reader's router, which returns a replica's number only, in the shape that the simulated fleet calls."""

    def __init__(self, mine: object):
        self.mine = mine
        self.worst = 0  # how far the chosen replica's load ever was above the least

    def choose(self, hashes, loads) -> Choice:
        replica = self.mine.choose(hashes, loads)
        require(replica in loads, f"choose() returned {replica!r}; it must return one of the replicas {list(loads)}.")
        self.worst = max(self.worst, loads[replica] - min(loads.values()))
        return Choice(replica, 0, "your router's choice")

    def sent(self, replica, hashes) -> None:
        self.mine.sent(replica, hashes)


def serve(router: object, arrivals: Iterable[Arrival] = CHATS, num_replicas: int = 4, **knobs) -> FleetReport:
    """Serve arrivals with a router: one of `Router`'s policies by its name, or an object of your own."""
    config = FleetConfig(num_replicas=num_replicas, **knobs)
    own = None if isinstance(router, str) else Adapted(router)
    if own is None:
        config = replace(config, router=router)
    return SimulatedFleet(config, cost=LARGER, router=own).run(arrivals)


def table(runs: dict[str, FleetReport], *, per_engine: bool = False) -> Table:
    """The figures that this chapter compares, a row per run; with `per_engine` how many requests each replica got, too."""
    header = ["", "TTFT p50 (ms)", "TTFT p99 (ms)", "ITL p99 (ms)", "found cached (%)"]
    rows = [[name, *(_rounded(seconds * 1e3) for seconds in (run.ttft(50), run.ttft(99), run.itl(99))),
             round(100 * run.hit_rate)] for name, run in runs.items()]
    if per_engine:
        header.append("requests per engine")
        for row, run in zip(rows, runs.values()):
            counts = [int((run.requests["replica"] == i).sum()) for i in range(run.config.num_replicas)]
            row.append(", ".join(map(str, counts)))
    return Table(header, rows)


def _rounded(ms: float) -> float | int:
    return round(ms) if ms >= 100 else round(ms, 1)


def measured() -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]], str]:
    """({policy: {how: mean TTFT in ms}}, {policy: {how: that and the share found cached}}, where) of two real engines."""
    result = json.loads((RESULTS / "router-cpu.json").read_text(encoding="utf-8"))
    times: dict[str, dict[str, float]] = {}
    words: dict[str, dict[str, str]] = {}
    for row in result["router"]:
        policy, ms = row["policy"].replace("_", " "), row["TTFT mean s"] * 1e3
        times.setdefault(policy, {})[row["how"]] = ms
        words.setdefault(policy, {})[row["how"]] = f"{ms:,.0f} ms, {row['hit rate']:.0%} found cached"
    return times, words, f"{result['work']}; {result['device']}, commit {result['commit']}"


def ray_fleet(replicas: int):
    """Live engines on Ray, or None with a word on why not."""
    if find_spec("ray") is None:
        print("pip install 'nano-vllm-course[fleet]', then run this cell again")
        return None
    from .ray_fleet import RayFleet
    try:
        return RayFleet(replicas)
    except Exception as error:
        print(f"Ray did not start ({type(error).__name__}); on a busy machine it may need another try")
        return None


@check("how many engines")
def check_engines_for(engines_for):
    """engines_for(rate, seconds_each, utilisation) -> the fewest engines that keep below that utilisation."""
    for rate, seconds_each, utilisation in ((10, 0.05, 0.8), (100, 0.05, 0.8), (40, 0.04, 0.8), (7, 0.5, 0.7), (1, 0.01, 0.9),
                                            (3, 0.1, 0.3)):
        right = next(n for n in range(1, 1000) if rate * seconds_each / n <= utilisation + 1e-9)
        got = engines_for(rate, seconds_each, utilisation)
        hint = f"{rate} requests/s of {seconds_each} s each, at most {utilisation:.0%} busy: {right} engines, not {got!r}."
        work = rate * seconds_each
        if got == math.ceil(work) != right:
            hint += " Those would be busy all the time."
        elif got == int(work / utilisation) != right:
            hint += " With so few each is busier than that: round up."
        require(isinstance(got, int) and not isinstance(got, bool), hint if got != right else f"a whole number, not {got!r}.")
        require(got == right, hint)
    return "six loads, from one engine to seven."


def _cheapest(known: dict[int, set[bytes]], hashes: list[bytes], loads: dict[int, int], block_ms: float,
              wait_ms: float) -> tuple[int, dict[int, float]]:
    """(the first replica with the least milliseconds, the milliseconds of each)."""
    costs = {}
    for i, load in loads.items():
        matched = next((n for n, block in enumerate(hashes) if block not in known[i]), len(hashes))
        costs[i] = (len(hashes) - matched) * block_ms + load * wait_ms
    return min(costs, key=costs.__getitem__), costs


@check("a router that weighs")
def check_router(MyRouter):
    """MyRouter(block_ms, wait_ms).choose(hashes, loads) -> replica; .sent(replica, hashes) is called once the request is on its
    way, .restarted(replica) when a replica has come back with an empty cache."""
    probe = MyRouter(30, 20)

    def ask(prompt: str, loads: list[int], right: int, why: str) -> None:
        """The prompt's letters are its blocks; block_ms is 30 and wait_ms 20."""
        got = probe.choose([prompt[:n + 1].encode() for n in range(len(prompt))], dict(enumerate(loads)))
        require(got in range(4), f"choose() returned {got!r}; it must return one of the replicas [0, 1, 2, 3].")
        require(got == right, f"block_ms=30, wait_ms=20, unfinished requests {loads}: {why}, so it is {right}, not {got}.")

    ask("ab", [1, 1, 1, 1], 0, "nobody knows anything, all cost the same, and the first of equals is wanted")
    ask("ab", [3, 1, 2, 2], 1, "nobody knows anything, and replica 1 has the fewest requests")
    probe.sent(2, [b"a", b"ab"])
    ask("abc", [1, 1, 1, 1], 2, "replica 2 was sent two of the three blocks, and all are equally loaded")
    ask("abc", [0, 1, 2, 1], 2, "two blocks cost 60 ms elsewhere, and two more requests in front cost 40")
    ask("abc", [0, 5, 4, 5], 0, "two blocks cost 60 ms elsewhere, and four more requests in front cost 80")
    probe.sent(2, [b"x", b"xy"])
    ask("abd", [1, 1, 1, 1], 2, "replica 2 was sent a, b and then x, y: its first two blocks are still there")
    probe.restarted(2)
    ask("abd", [1, 1, 1, 1], 0, "replica 2 came back with an empty cache, and all cost the same")
    draw = random.Random(17)
    for case in range(40):
        block_ms, wait_ms = draw.choice(((30, 20), (30, 5), (10, 20), (40, 0)))
        probe, known = MyRouter(block_ms, wait_ms), {i: set() for i in range(4)}
        for step in range(12):
            tokens = bytes(draw.randrange(2) for _ in range(5))
            prompt = [tokens[:n + 1] for n in range(5)]  # a hash covers its block and all before it
            loads = {i: draw.randrange(12) for i in range(4)}
            right, costs = _cheapest(known, prompt, loads, block_ms, wait_ms)
            got = probe.choose(list(prompt), dict(loads))
            require(got in loads, f"choose() returned {got!r}; it must return one of the replicas {list(loads)}.")
            told = ", ".join(f"replica {i} {cost:g}" for i, cost in costs.items())
            require(got == right, f"case {case}, request {step}: block_ms={block_ms}, wait_ms={wait_ms}, {loads=}; the costs"
                    f" are {told} ms, so {right} is the first of the cheapest, and {got} was chosen.")
            probe.sent(got, list(prompt))
            known[got].update(prompt)
            if draw.random() < 0.1:
                probe.restarted(got)
                known[got] = set()
    robin, ours = serve("round_robin"), serve("prefix_aware")
    run = serve(MyRouter(BLOCK_MS, WAIT_MS))
    hot = replace(CHATS, system_prompts=1, rate=30, num_conversations=200, turns=1)
    popular = serve(MyRouter(BLOCK_MS, WAIT_MS), hot)
    used = [int((popular.requests["replica"] == i).sum()) for i in range(4)]
    wanted = robin.hit_rate + 0.7 * (ours.hit_rate - robin.hit_rate)
    found = f"{run.hit_rate:.0%} of the chats' prompt tokens found cached"
    require(run.hit_rate >= wanted and min(used) > 0, f"the single decisions are right, but over a run {found} ({wanted:.0%}"
            f" are wanted), and of one popular prompt the replicas got {used} requests. Does it forget what it was sent?")
    return f"487 decisions; then {found} (round robin: {robin.hit_rate:.0%}), and one popular prompt for each engine: {used}."


@check("the load that a fleet can carry")
def check_highest_rate(highest_rate):
    """highest_rate(is_good, highest) -> the highest whole rate in 1..highest for which is_good(rate), 0 if there is none."""
    for limit in (137, 1, 0, 512, 64, 511):
        asked: list[int] = []

        def is_good(rate, limit=limit, asked=asked):
            require(1 <= rate <= 512 and rate == int(rate), f"is_good({rate!r}) was asked; rates are whole, from 1 to 512.")
            asked.append(rate)
            require(len(asked) <= 12, f"good up to {limit}: a 13th simulation was run ({asked[:4]} …), and each takes a while.")
            return rate <= limit

        got = highest_rate(is_good, 512)
        hint = f"good up to {limit}, of at most 512: {limit}, not {got!r}."
        if got == limit + 1:
            hint += " That is the first rate that is not good."
        require(got == limit, hint)
    return "six fleets, at most twelve simulations each."
