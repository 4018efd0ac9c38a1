"""What drafting gains at the shapes of large models, whose weights are random: acceptance is forced.

With random weights no draft would be right. At a temperature of a million the noise alone decides a draw; a draft model that
draws with the same noise is then always right, at its true cost, and a wrapper spoils each of its guesses with a fixed
probability.
"""

import json
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

from benchmarks.speculation_pairs import timed
from nanovllm import LLM, SamplingParams
from nanovllm.engine.device_drafters import DeviceDrafter
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.drafts_model import DraftModel
from nanovllm.engine.drafts_ngram import NgramDrafter
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.noise import GOLDEN, mix64
from nanovllm.utils.draft_state import DraftState

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
           streams: tuple[int, ...] = (1, 8, 4, 32, 64, 16, 2, 48), **settings: Any) -> None:
    """A large shape with a small one drafting for it, at forced acceptances, and over batch sizes."""
    with shape_folder(large) as target, shape_folder(small) as draft:
        common: dict[str, Any] = {"load_format": "dummy", "max_num_seqs": max(streams), "max_model_len": 1024, **settings}
        most = max(33, max(streams)) * 4 + 4  # four drafts of each, and no batch too large for any
        spec = {"model": draft, "num_speculative_tokens": 4, "disable_by_batch_size": most}
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

            for num_streams in streams:
                run(num_streams, 0.9), run(num_streams, None)  # what is compiled at its first use is compiled by now
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
