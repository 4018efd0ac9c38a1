"""`python -m benchmarks serve`: a load test of an OpenAI server, with percentiles and goodput.

    python -m benchmarks serve --rate 8 --requests 200                    # Poisson arrivals at a server that is started here
    python -m benchmarks serve --url http://127.0.0.1:8000/v1 --rate 8 --burst 5 --goodput ttft:200 itl:50
    python -m benchmarks serve --concurrency 16 --plot load.png           # closed loop: 16 users who never think
    python -m benchmarks serve --trace arrivals.jsonl --json load.json    # a file's arrivals, in Mooncake's format

With --rate and --trace, requests leave at their planned times even if the server cannot keep up, and every latency is
counted from there. Prompts are made up: system prompts that conversations share, and own messages. What fails is counted by
reason. Options that describe the traffic are those of `python -m nanovllm simulate`, which predicts what is measured here.
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

import aiohttp
from tqdm import tqdm

from benchmarks import machine
from benchmarks.load_client import LoadClient, Outcome, Request
from benchmarks.load_driver import closed_loop, open_loop
from benchmarks.load_report import LoadReport, parse_goodput
from benchmarks.load_requests import ENDPOINTS, requests
from benchmarks.own_server import own_server, served_model
from nanovllm.fleet.arrivals import Arrival, TraceFile, Traffic
from nanovllm.fleet.command import SIMULATED
from nanovllm.server import KEY_VARIABLE
from nanovllm.utils.checks import check

TRAFFIC = {name: SIMULATED[name] for name in ("requests", "system-prompts", "system-tokens", "prompt-tokens", "output-tokens",
                                              "burst", "seed")}
SMALLER = {"requests": 100, "system-tokens": 64, "prompt-tokens": 64, "output-tokens": 32}  # a laptop's engine, not 64 H200s
SECRET = "given, not shown"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks serve", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    server = made.add_argument_group("server")
    server.add_argument("--url", help="address with /v1 (default: start `python -m nanovllm serve` for the test)")
    server.add_argument("--model", help="its name at the server; without --url also the folder to serve")
    server.add_argument("--server-args", default="", metavar="ARGS",
                        help="options of the server that is started here, in one string: '--max-num-seqs 64'")
    server.add_argument("--api-key", help=f"the server's key (default: what {KEY_VARIABLE} or OPENAI_API_KEY holds)")
    server.add_argument("--endpoint", choices=ENDPOINTS, default="completions",
                        help="completions: prompts are token ids; chat: words (default: completions)")
    load = made.add_argument_group("load")
    load.add_argument("--rate", type=float, help="requests per second on average, as a Poisson process (default: 4)")
    load.add_argument("--concurrency", type=int, help="closed loop: so many requests are always under way")
    load.add_argument("--trace", type=Path, help="arrivals and lengths from a JSONL file instead of drawing them")
    load.add_argument("--speed", type=float, default=1.0, help="replay the trace so many times faster (default: 1)")
    for name, (kind, default, text) in TRAFFIC.items():
        value = SMALLER.get(name, default)
        load.add_argument(f"--{name}", type=kind, default=value, help=f"{text} (default: {value})")
    load.add_argument("--no-ignore-eos", dest="ignore_eos", action="store_false", help="answers may end before their length")
    load.add_argument("--extra-body", type=_json_object, default={}, metavar="JSON",
                      help="fields for every request, such as '{\"temperature\": 0.7}'")
    load.add_argument("--warmup", type=int, default=2, help="requests before the test, which count for nothing (default: 2)")
    load.add_argument("--timeout", type=float, default=600, help="seconds after which a request has failed (default: 600)")
    out = made.add_argument_group("results")
    out.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS",
                     help="limits of a good request, in milliseconds: ttft, tpot, itl (its longest gap), e2el")
    out.add_argument("--json", type=Path, metavar="FILE", help="write figures, flags, machine, date and commit here")
    out.add_argument("--save-detailed", action="store_true", help="in that file, every request as well")
    out.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of the test; a dark one beside it")
    return made


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for a test that cannot be meant; fills in what was left out."""
    ways = [name for name in ("rate", "concurrency", "trace") if getattr(args, name) is not None]
    check(len(ways) <= 1, "load", ", ".join(f"--{name}" for name in ways), "one of --rate, --concurrency and --trace",
          "each says when requests leave: choose one")
    args.rate = 4.0 if not ways else args.rate
    check(args.rate is None or 0 < args.rate < math.inf, "rate", args.rate, "above 0 requests per second", "use --rate 4")
    check(args.burst == 1 or args.rate is not None, "burst", args.burst, "used with --rate", "leave it out")
    check(args.concurrency is None or args.concurrency >= 1, "concurrency", args.concurrency, "1 or more", "use 1 for one user")
    check(args.trace is None or args.trace.is_file(), "trace", str(args.trace), "a file", "name one that exists")
    check(args.requests >= 1, "requests", args.requests, "1 or more", "use --requests 100")
    check(args.warmup >= 0, "warmup", args.warmup, "0 or more", "use 0 for none")
    check(0 < args.timeout < math.inf, "timeout", args.timeout, "above 0 seconds", "use --timeout 600")
    check(args.url is None or args.url.startswith(("http://", "https://")), "url", args.url, "an http address",
          "write http://127.0.0.1:8000/v1")
    check(not (args.url and args.server_args), "server-args", args.server_args, "used without --url",
          "give them to the server that runs")
    for path in (args.json, args.plot):
        check(path is None or path.parent.is_dir(), "file", str(path), "in a folder that exists", "make the folder first")
    parse_goodput(args.goodput)


def arrivals(args: argparse.Namespace) -> list[Arrival]:
    """The traffic that the options describe. Raises ValueError for one that cannot be."""
    if args.trace is not None:
        found = list(TraceFile(args.trace, speed=args.speed, limit=args.requests))
        check(bool(found), "trace", str(args.trace), "a file with requests", "name another")
        return found
    return list(Traffic(rate=args.rate or 1.0, num_conversations=args.requests, system_prompts=args.system_prompts,
                   system_tokens=args.system_tokens, prompt_tokens=args.prompt_tokens, output_tokens=args.output_tokens,
                   burst=args.burst, seed=args.seed))


class Bar:
    """The progress bar: how many have ended, how many are under way, how many failed."""

    def __init__(self, total: int):
        self._bar = tqdm(total=total, desc="Load test", unit=" requests")
        self._running = self._failed = 0

    def began(self) -> None:
        self._running += 1

    def ended(self, outcome: Outcome) -> None:
        self._running -= 1
        self._failed += outcome.error is not None
        self._bar.set_postfix(running=self._running, failed=self._failed, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


class Quiet:
    """Told of the warm-up, which nobody watches."""

    def began(self) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...


async def measure(args: argparse.Namespace, traffic: list[Arrival], url: str) -> tuple[str, LoadReport]:
    """Run the test against a server: (its model, report). Raises ValueError when a warm-up request fails."""
    key = args.api_key or os.environ.get(KEY_VARIABLE) or os.environ.get("OPENAI_API_KEY")
    model = args.model if args.url and args.model else await ask_model(url, key)

    def made(source: list[Arrival], seed: int) -> list[Request]:
        return requests(source, args.endpoint, model, seed=seed, ignore_eos=args.ignore_eos, extra_body=args.extra_body)

    planned, warm_up = made(traffic, args.seed), made(traffic[:args.warmup], args.seed - 1)
    async with LoadClient(url, ENDPOINTS[args.endpoint], api_key=key, timeout=args.timeout) as client:
        for outcome in await closed_loop(warm_up, client.send, Quiet(), 1):
            check(outcome.error is None, "warm-up", outcome.error, f"answered by {url}", "look at --url and --model")
        bar = Bar(len(planned))
        try:
            outcomes = await (open_loop(planned, client.send, bar) if args.concurrency is None else
                              closed_loop(planned, client.send, bar, args.concurrency))
        finally:
            bar.close()
    return model, LoadReport(outcomes, parse_goodput(args.goodput))


async def ask_model(url: str, key: str | None) -> str:
    """The name of the model that the server serves. Raises ValueError when it does not say."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as session,
                    session.get(f"{url.rstrip('/')}/models") as response):
            text = await response.text()
            check(response.status == 200, "url", url, f"one whose /models answers 200, and it answered {response.status}",
                  "look at --url (it ends in /v1) and --api-key")
            return served_model(json.loads(text))
    except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
        check(False, "url", url, f"the address of a server that runs ({type(error).__name__})", "start it, or leave out --url")
        raise


def results(args: argparse.Namespace, model: str, report: LoadReport) -> dict[str, Any]:
    """What --json writes."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
             if name not in ("json", "plot")} | ({"api_key": SECRET} if args.api_key else {})
    found: dict[str, Any] = {
        "device": machine.device(), "date": datetime.date.today().isoformat(), "commit": machine.commit(),
        **machine.versions("aiohttp"), "load_average": os.getloadavg()[0], "model": model, "flags": flags,
        "figures": report.figures(), "errors": dict(report.errors)}
    return found | ({"outcomes": report.rows()} if args.save_detailed else {})


def draw(report: LoadReport, file: Path) -> list[Path]:
    """Save the picture for light pages as `file` and for dark ones beside it; returns both."""
    from visualizations import plot_load_test, theme

    written = []
    for path, mode in ((file, theme.LIGHT), (file.with_stem(file.stem + "-dark"), theme.DARK)):
        with theme.using(mode):
            failed = [outcome.arrival for outcome in report.outcomes if outcome.error is not None]
            plot_load_test(report.columns, failed=failed, limits=report.limits).savefig(path)
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> None:
    options = parser()
    args = options.parse_args(arguments)
    try:
        check_arguments(args)
        traffic = arrivals(args)
        with contextlib.ExitStack() as stack:
            url = args.url or stack.enter_context(own_server(*([args.model] if args.model else []),
                                                             *shlex.split(args.server_args)))
            model, report = asyncio.run(measure(args, traffic, url))
        print(f"\n{model}: {report}")
        if args.json is not None:
            args.json.write_text(json.dumps(results(args, model, report), indent=1) + "\n", encoding="utf-8")
        if args.plot is not None and report.completed:
            print(" and ".join(map(str, draw(report, args.plot))))
    except ValueError as error:
        options.error(str(error))
    if not report.completed:
        raise SystemExit("No request was answered.")


if __name__ == "__main__":
    main()
