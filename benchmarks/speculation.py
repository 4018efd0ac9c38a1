"""What drafting gains: tokens per second with and without it, in turn, on one machine.

    python -m benchmarks.speculation                         # offline model and its draft, one stream and eight, look-ups
    python -m benchmarks.speculation --shapes --out FILE     # on a GPU, the 8B shape with a draft of the 0.6B shape, too

With random weights no draft would be right, so acceptance is forced there. At a temperature of a million the noise alone
decides a draw; a draft model that draws with the same noise is then always right, at its true cost, and a wrapper spoils
each of its guesses with a fixed probability.

Pairs are interleaved: with and without, then without and with; the ratio is the median over the pairs. The machine's load
stands beside the figures.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.machine import commit, cpu, gpu, results_file
from benchmarks.tensor_parallel import QWEN3_8B
from benchmarks.workloads import SHAPE
from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL
from nanovllm.engine.device_drafters import DeviceDrafter
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.drafts_model import DraftModel
from nanovllm.engine.drafts_ngram import NgramDrafter
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.noise import GOLDEN, mix64
from nanovllm.utils.draft_state import DraftState

BY_MODEL = {"method": "draft_model", "model": str(DRAFT_MODEL), "num_speculative_tokens": 4}
LOOK_UP = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 1, "num_speculative_tokens": 8}
STORIES = [f"Tell me a story about a {who}." for who in ("fox", "bear", "hen", "wolf", "mouse", "owl", "cat", "duck")]
LISTS = ["fox, lantern, Mia, bell, bear, red, hen, Otto", "hen, fox, bell, red, bear, lantern, Otto, Mia",
         "bear, Otto, fox, hen, lantern, bell, Mia, red", "bell, hen, Mia, fox, red, Otto, bear, lantern"]
NOISE_ALONE = 1e6  # a temperature


class Spoiled(Drafter):
    """A draft model's guesses, each replaced by a wrong one with probability 1 - acceptance."""

    def __init__(self, inner: Drafter, acceptance: float, vocab_size: int):
        self.inner, self.acceptance, self.cost, self.vocab_size = inner, acceptance, 0.0, vocab_size
        self.random = random.Random(0)

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        return [[token if self.random.random() < self.acceptance else (token + 1) % self.vocab_size for token in drafts]
                for drafts in self.inner.propose(sequences, limits)]

    def catch_up(self, sequences: list[Sequence]) -> None:
        self.inner.catch_up(sequences)

    def overwrite(self, blocks: list[int]) -> None:
        self.inner.overwrite(blocks)

    def follow(self, seq: Sequence) -> None:
        self.inner.follow(seq)

    def forget(self, seq_id: int) -> None:
        self.inner.forget(seq_id)


class SpoiledOnDevice:
    """The same within a graph. acceptance: a number on the device, which may be changed between steps."""

    def __init__(self, inner: DeviceDrafter, vocab_size: int):
        self.inner, self.reads_text, self.vocab_size = inner, inner.reads_text, vocab_size
        self.acceptance = torch.ones((), device="cuda")

    def propose(self, kernels: ModuleType, state: DraftState, num_rows: int, num_drafts: int, filtered: bool) -> None:
        self.inner.propose(kernels, state, num_rows, num_drafts, filtered)
        n, k, rows = num_rows, num_drafts, state.rows
        place = rows.cached[:n, None] + torch.arange(k, device=rows.cached.device)
        chance = (mix64(rows.seeds[:n, None] + (place + 1) * GOLDEN) & 0xFFFFFF).float() / 2**24
        drafts = state.drafts[:n, :k]
        drafts.copy_(torch.where(chance < self.acceptance, drafts, (drafts + 1) % self.vocab_size))


def timed(llm: LLM, prompts: list[Any], params: list[SamplingParams]) -> tuple[float, list[list[int]], int, float]:
    """Seconds, the tokens, how many steps it took, and the seconds from a request's first token to its last, on average."""
    steps, began = llm.engine.num_steps, time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    between = statistics.mean(sum(out.timings.inter_token) for out in outputs if out.timings)
    return seconds, [out.token_ids for out in outputs], llm.engine.num_steps - steps, between


def pairs(plain: LLM, drafting: LLM, prompts: list[Any], params: list[SamplingParams], runs: int) -> dict[str, Any]:
    """Both, in turn; the text is compared, too."""
    runs_of: dict[str, list[float]] = {"plain": [], "drafting": []}
    cpu_of: dict[str, list[float]] = {"plain": [], "drafting": []}
    between: dict[str, list[float]] = {"plain": [], "drafting": []}
    for llm in (plain, drafting):
        timed(llm, prompts, params)  # warm
    counts = getattr(drafting.engine.speculation, "counts", None)
    before = (counts.drafted, counts.accepted) if counts else (0, 0)
    texts, steps = {}, {}
    for i in range(runs):
        for name, llm in (("plain", plain), ("drafting", drafting))[::1 if i % 2 else -1]:
            began = time.process_time()
            seconds, texts[name], steps[name], decoding = timed(llm, prompts, params)
            between[name].append(decoding)
            cpu_of[name].append(time.process_time() - began)
            runs_of[name].append(seconds)
    tokens = sum(map(len, texts["plain"]))
    drafted, accepted = (counts.drafted - before[0], counts.accepted - before[1]) if counts else (0, 0)
    return {"ratio": statistics.median(p / d for p, d in zip(runs_of["plain"], runs_of["drafting"])),
            "ratio from first token to last": statistics.median(
                p / d for p, d in zip(between["plain"], between["drafting"])),
            "ratio of processor time": statistics.median(p / d for p, d in zip(cpu_of["plain"], cpu_of["drafting"])),
            "plain tok/s": tokens / statistics.median(runs_of["plain"]),
            "drafting tok/s": tokens / statistics.median(runs_of["drafting"]), "seconds": runs_of, "steps": steps,
            "same text": texts["plain"] == texts["drafting"], "drafts accepted": accepted / drafted if drafted else None,
            "tokens per step": tokens / len(prompts) / steps["drafting"]}


def chats(llm: LLM, texts: list[str]) -> list[str]:
    return [llm.render_chat([{"role": "user", "content": text}]) for text in texts]


def offline(say: Callable[[str, Any], None], runs: int, **settings: Any) -> None:
    """The model that ships with the package, and its draft."""
    with LLM(**settings) as plain:
        for name, drafts in (("draft model", BY_MODEL), ("look-up", LOOK_UP)):
            with LLM(speculative_config=drafts, **settings) as drafting:
                if name == "look-up":
                    texts = chats(plain, [f"Please repeat: {words}." for words in LISTS])
                    asked = [SamplingParams(temperature=0, max_tokens=40)] * len(texts)
                    say("look-up, repeated lists, one at a time", one_by_one(plain, drafting, texts, asked, 2 * runs))
                for num_streams in (1, 8):
                    for temperature in (0.0, 1.0):
                        params = [SamplingParams(temperature=temperature, seed=i, max_tokens=128, ignore_eos=True)
                                  for i in range(num_streams)]
                        say(f"{name}, {num_streams} streams, temperature {temperature:g}",
                            pairs(plain, drafting, chats(plain, STORIES[:num_streams]), params, runs))


def one_by_one(plain: LLM, drafting: LLM, texts: list[str], params: list[SamplingParams], runs: int) -> dict[str, Any]:
    each = [pairs(plain, drafting, [text], [one], runs) for text, one in zip(texts, params)]
    return {"ratio": statistics.median(e["ratio"] for e in each), "same text": all(e["same text"] for e in each),
            "ratio from first token to last": statistics.median(e["ratio from first token to last"] for e in each),
            "steps": [e["steps"] for e in each], "ratios": [e["ratio"] for e in each],
            "ratios of processor time": [e["ratio of processor time"] for e in each]}


@contextmanager
def spoiled_graphs(vocab_size: int) -> Iterator[None]:
    """Within the block, engines capture their draft models together with what makes their guesses wrong."""
    original = DraftModel.on_device
    DraftModel.on_device = lambda self: SpoiledOnDevice(original(self), vocab_size)  # type: ignore[method-assign]
    try:
        yield
    finally:
        DraftModel.on_device = original  # type: ignore[method-assign]


@contextmanager
def shape_folder(shape: dict[str, Any]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        yield folder


def shapes(say: Callable[[str, Any], None], until: float, large: dict[str, Any], small: dict[str, Any], num_out: int = 96,
           **settings: Any) -> None:
    """A large shape with a small one drafting for it, at forced acceptances, and over batch sizes."""
    with shape_folder(large) as target, shape_folder(small) as draft:
        common: dict[str, Any] = {"load_format": "dummy", "max_num_seqs": 32, "max_model_len": 1024, **settings}
        spec = {"model": draft, "num_speculative_tokens": 4, "disable_by_batch_size": 136}
        began = time.perf_counter()
        with spoiled_graphs(large["vocab_size"]), LLM(target, speculative_config=spec, **common) as llm:
            say("start, seconds", time.perf_counter() - began)
            speculation = llm.engine.speculation
            assert speculation is not None  # so configured
            model, vocab_size, rng = speculation.drafter, large["vocab_size"], random.Random(0)
            runner: Any = llm.engine.model_runner
            spoiled = Spoiled(model, 1.0, vocab_size)
            on_device: Any = runner.draft_graphs and runner.draft_graphs.drafter
            speculation.times = None  # whatever they cost

            def run(num_streams: int, acceptance: float | None) -> tuple[float, float | None]:
                """Milliseconds for each token of a stream, with drafts (None: without); and the share accepted."""
                assert speculation is not None
                speculation.token_cost = 0.0  # four drafts, whatever they are worth
                speculation.most = 0 if acceptance is None else 4
                speculation.drafter, spoiled.acceptance = spoiled, acceptance or 0.0
                if on_device is not None:
                    on_device.acceptance.fill_(spoiled.acceptance)
                before = speculation.counts.drafted, speculation.counts.accepted
                prompts = [[rng.randrange(vocab_size) for _ in range(256)] for _ in range(num_streams)]
                params = [SamplingParams(temperature=NOISE_ALONE, seed=i, max_tokens=num_out, ignore_eos=True)
                          for i in range(num_streams)]
                outputs = llm.generate(prompts, params, use_tqdm=False)
                drafted = speculation.counts.drafted - before[0]
                # From first token to last: a prompt costs the same with and without, but for the draft's own prefill.
                spent = [sum(out.timings.inter_token) for out in outputs if out.timings]
                return (1000 * statistics.mean(spent) / (num_out - 1),
                        (speculation.counts.accepted - before[1]) / drafted if drafted else None)

            run(1, 0.9), run(1, None)
            for num_streams in (1, 8, 4, 32, 16, 2):
                for acceptance in (0.7, 0.5, 0.9, 0.6, 0.8) if num_streams == 1 else (0.7, 0.9):
                    if time.perf_counter() > until:
                        return
                    plain, (drafted, share) = run(num_streams, None)[0], run(num_streams, acceptance)
                    say(f"shapes, {num_streams} streams, each draft right with {acceptance:g}",
                        {"plain ms/token": plain, "drafting ms/token": drafted, "ratio": plain / drafted, "accepted": share})


def many(say: Callable[[str, Any], None], shape: dict[str, Any] | None, num_requests: int = 256, num_out: int = 128,
         runs: int = 3, **settings: Any) -> None:
    """What it costs where it is off: more sequences than may draft."""
    with shape_folder(shape or {}) as folder:
        common = {"max_num_seqs": num_requests, "max_model_len": 1024, **settings}
        model = folder if shape else None
        if shape:
            common["load_format"] = "dummy"
        with LLM(model, **common) as plain:
            vocab_size = plain.config.hf_config.vocab_size
            rng = random.Random(0)
            prompts = [[rng.randrange(vocab_size) for _ in range(32)] for _ in range(num_requests)]
            params = [SamplingParams(temperature=0.6, seed=i, max_tokens=num_out, ignore_eos=True) for i in range(num_requests)]
            # The same engine with and without a drafter: nothing else differs, memory and graphs neither.
            from nanovllm.engine.drafts_control import Speculation
            from nanovllm.speculative_config import SpeculativeConfig
            engine = plain.engine
            seconds: dict[str, list[float]] = {"plain": [], "drafting": []}
            on = Speculation(NgramDrafter(), engine.scheduler, SpeculativeConfig(), vocab_size,
                             looks_ahead=engine._looks_ahead)
            for i in range(2 * runs + 1):
                for name in ("plain", "drafting")[::1 if i % 2 else -1]:
                    engine.speculation = on if name == "drafting" else None
                    took, *_ = timed(plain, prompts, params)
                    if i:
                        seconds[name].append(took)
            engine.speculation = None
            say(f"{num_requests} requests, drafting against plain", {
                "ratio": statistics.median(p / d for p, d in zip(seconds["plain"], seconds["drafting"])), "seconds": seconds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="pairs of each")
    parser.add_argument("--shapes", action="store_true", help="the 8B and 0.6B shapes, which need a GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, help="the results file (default: benchmarks/results/speculation-<machine>.json)")
    work = parser.parse_args()
    began = time.perf_counter()
    cuda = torch.cuda.is_available()
    results: dict[str, Any] = {"machine": gpu() if cuda else {"device": cpu(), "commit": commit()},
                               "threads": torch.get_num_threads()}
    out = work.out or results_file(f"speculation-{results['machine']['device']}")

    def say(what: str, outcome: Any) -> None:
        if isinstance(outcome, dict):
            outcome["load"] = os.getloadavg()[0]
        results[what] = outcome
        print(f"{time.perf_counter() - began:6.1f} s  {what}: {json.dumps(outcome)}", flush=True)
        out.write_text(json.dumps(results, indent=1), encoding="utf-8")

    settings = {"max_num_seqs": 64, "dtype": "float32"} if cuda else {}
    offline(say, work.runs, **settings)
    if cuda:  # the dtype that a GPU is used with; texts may part where two tokens are about as likely
        offline(lambda what, outcome: say(f"bfloat16, {what}", outcome), work.runs, **settings | {"dtype": "bfloat16"})
    if work.shapes:
        small = SHAPE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16"}
        shapes(say, began + work.seconds, QWEN3_8B, small)
        if time.perf_counter() - began < work.seconds:
            many(say, small)
    else:
        many(say, None, num_out=32, runs=2)


if __name__ == "__main__":
    main()
