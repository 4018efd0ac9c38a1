"""Thousands of short requests through the real server: every answer checked, memory watched, nothing left behind.

    nice python -m benchmarks.soak                          # 20,000 requests, 64 clients; writes benchmarks/results/
    python -m benchmarks.soak --requests 500 --clients 8    # a shorter one

The server runs in a process of its own, on the offline model with a cache too small for all clients, so that requests
wait, are preempted and share blocks all the time. The requests are drawn from a few hundred distinct ones, completions and
chats, greedy and seeded, with stop strings, penalties and several samples. Each of these is first answered alone, by an
engine that nobody shares; what the server says must equal that: text, finish reason and number of tokens. Some clients
hang up on the way; what they got until then must be a beginning of the whole.

Raises SystemExit unless every answer is right, memory is flat, every block is free at the end, and some request was
preempted.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, cast

import httpx
import psutil
import torch

from benchmarks.cpu_throughput import machine
from benchmarks.machine import results_file
from nanovllm import LLM, AsyncLLM, RequestOutput, SamplingParams

WHO = ("a fox", "a hen", "a bear", "a cat", "an owl", "two mice", "a boy", "the miller")
WHAT = ("a bell", "a kite", "a lantern", "an apple", "a boat", "an old key")
ENGINE: dict[str, Any] = dict(device="cpu", kvcache_block_size=1, num_kvcache_blocks=300, max_num_seqs=48, seed=0)
WARM_UP = 0.1   # of the requests; memory is compared from there on
HANG_UPS = 0.05
FLAT = 0.02


@dataclass
class Case:
    """One distinct request and what it must get: (text, finish reason) of each sample, and tokens in all."""

    path: str
    body: dict[str, Any]
    samples: list[tuple[str, str | None]] = field(default_factory=list)
    num_tokens: int = 0


def make_cases(count: int) -> list[Case]:
    """Distinct requests, each answered alone."""
    rng = random.Random(0)
    cases = []
    with LLM(**ENGINE) as llm:
        for i in range(count):
            subject = f"{rng.choice(WHO)} and {rng.choice(WHAT)}"
            options: dict[str, Any] = dict(max_tokens=rng.randint(1, 16), temperature=0)
            if rng.random() < 0.5:
                options |= dict(temperature=rng.choice((0.7, 1.0)), seed=i, top_p=rng.choice((1.0, 0.9)))
                extra: list[dict[str, Any]] = [{}, {}, dict(n=2), dict(presence_penalty=0.5), dict(frequency_penalty=0.5)]
                options |= rng.choice(extra)
            if rng.random() < 0.2:
                options |= dict(stop=[rng.choice((" the", ".", "e", " a"))])
            params = SamplingParams(**options)
            if rng.random() < 0.5:
                prompt = f"Story {i % 7}. Once upon a time there lived {subject}"
                case = Case("completions", options | {"prompt": prompt})
                output, = llm.generate(prompt, params, use_tqdm=False)
            else:
                messages = [{"role": "system", "content": "You tell short stories in simple words."},
                            {"role": "user", "content": f"Tell me about {subject}."}]
                case = Case("chat/completions", options | {"messages": messages})
                output, = llm.chat(messages, params, use_tqdm=False)
            cases.append(expect(case, output))
    return cases


def expect(case: Case, output: RequestOutput) -> Case:
    case.samples = [(sample.text, sample.finish_reason) for sample in output.outputs]
    case.num_tokens = output.usage.completion_tokens
    return case


class Soak:
    """The clients' side. Owns the tallies; it knows the server only by its address.

    outcomes: how many requests were right, were left by their client, or went wrong. wrong: the first few, in words.
    """

    def __init__(self, url: str, cases: list[Case], num_requests: int,
                 on_progress: Callable[[int], object] = lambda done: None) -> None:
        self.url, self.cases, self.num_requests, self.on_progress = url, cases, num_requests, on_progress
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self._rng = random.Random(1)
        self._numbers = iter(range(num_requests))

    async def run(self, num_clients: int) -> None:
        await asyncio.gather(*(self._client() for _ in range(num_clients)))

    async def _client(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            for _ in self._numbers:  # shared: every client takes the next one
                case, leaves = self._rng.choice(self.cases), self._rng.random() < HANG_UPS
                ask = self._stream if self._rng.random() < 0.5 else self._whole
                try:
                    outcome = await ask(http, case, leaves)
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    outcome = f"{type(error).__name__}: {error}"
                if outcome not in ("right", "left"):
                    self.wrong = [*self.wrong, f"{case}: {outcome}"][:10]
                    outcome = "wrong"
                self.outcomes[outcome] += 1
                self.on_progress(self.outcomes.total())

    async def _whole(self, http: httpx.AsyncClient, case: Case, leaves: bool) -> str:
        try:
            reply = await asyncio.wait_for(http.post(case.path, json=case.body), self._rng.uniform(0, 0.05) if leaves else None)
        except TimeoutError:
            return "left"
        answer = reply.raise_for_status().json()
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        got = [(c["text"] if "text" in c else c["message"]["content"], c["finish_reason"]) for c in choices]
        return self._verdict(case, got, answer["usage"]["completion_tokens"])

    async def _stream(self, http: httpx.AsyncClient, case: Case, leaves: bool) -> str:
        texts, ends, num_tokens = [""] * len(case.samples), [None] * len(case.samples), None
        patience = self._rng.randint(0, 6) if leaves else None
        body = case.body | {"stream": True, "stream_options": {"include_usage": True}}
        async with http.stream("POST", case.path, json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if patience is not None and (patience := patience - 1) < 0:
                    begun = all(whole.startswith(text) for text, (whole, _) in zip(texts, case.samples))
                    return "left" if begun else f"{texts} is no beginning"
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                for choice in chunk["choices"]:
                    text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                    texts[choice["index"]] += text
                    ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
                if chunk["usage"]:
                    num_tokens = chunk["usage"]["completion_tokens"]
        return self._verdict(case, list(zip(texts, ends)), num_tokens)

    @staticmethod
    def _verdict(case: Case, got: list[tuple[str, str | None]], num_tokens: int | None) -> str:
        return "right" if (got, num_tokens) == (case.samples, case.num_tokens) else f"{got} in {num_tokens} tokens"


def serve() -> None:
    """The server's process: serves until SIGINT, then says what is left in the engine."""
    from nanovllm.server.app import create_app
    from nanovllm.server.run import Server, bind
    torch.set_num_threads(1)
    llm = LLM(**ENGINE)
    try:
        with bind("127.0.0.1", 0) as listener:
            Server(create_app(AsyncLLM(llm), generation_config="vllm"), 10, "warning").run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    engine = llm.engine
    engine.check_integrity()
    print(json.dumps({"unfinished": engine.has_unfinished, "blocks": engine.block_manager.num_blocks,
                      "free_blocks": engine.block_manager.num_free_blocks, "steps": engine.num_steps,
                      "preemptions": engine.scheduler.num_preemptions}))


def soak(num_requests: int, num_clients: int, num_cases: int = 400) -> dict[str, Any]:
    """Run one; returns its figures. Memory in bytes, as the system counts the server's resident pages."""
    torch.set_num_threads(1)
    cases = make_cases(num_cases)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.soak", "--serve"], stdout=subprocess.PIPE, text=True,
                              env=environment, encoding="utf-8")
    try:
        url = cast(IO[str], server.stdout).readline().split()[-1]
        process, memory, every = psutil.Process(server.pid), [], max(1, num_requests // 50)

        def watch(done: int) -> None:
            if done % every == 0 or done == num_requests:
                memory.append((done, process.memory_info().rss))
                print(f"{done} of {num_requests}, {memory[-1][1] / 2**20:.0f} MiB", file=sys.stderr, flush=True)

        run = Soak(url, cases, num_requests, watch)
        started = time.perf_counter()
        asyncio.run(run.run(num_clients))
        seconds = time.perf_counter() - started
        threads, files = process.num_threads(), process.num_fds()
        server.send_signal(signal.SIGINT)
        left: dict[str, Any] = json.loads(server.communicate(timeout=60)[0].splitlines()[-1])
    finally:
        server.kill()
    warm = next(rss for done, rss in memory if done >= WARM_UP * num_requests)
    return {"requests": num_requests, "clients": num_clients, "distinct_requests": num_cases,
            "right": run.outcomes["right"], "disconnected": run.outcomes["left"], "wrong": run.outcomes["wrong"],
            "first_wrong": run.wrong, "seconds": round(seconds, 1), "requests_per_second": round(num_requests / seconds, 1),
            "memory_after_warm_up": warm, "memory_at_the_end": memory[-1][1],
            "memory_change": round(memory[-1][1] / warm - 1, 4), "memory": memory,
            "server_threads": threads, "server_open_files": files} | left  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    figures = machine() | {"cores": 1} | soak(arguments.requests, arguments.clients)
    print(json.dumps({name: value for name, value in figures.items() if name != "memory"}, indent=1))
    results_file(f"{figures['cpu']} soak").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    if figures["wrong"] or figures["unfinished"] or figures["free_blocks"] < figures["blocks"]:
        raise SystemExit("an answer was wrong, or something was left behind")
    if not figures["preemptions"]:
        raise SystemExit("no request was ever preempted: make the cache smaller")
    if abs(figures["memory_change"]) > FLAT:
        raise SystemExit(f"memory changed by {figures['memory_change']:+.1%}, more than {FLAT:.0%}")


if __name__ == "__main__":
    main()
