"""What drafting gains: tokens a second with and without it, in turn, on one machine.

    python -m benchmarks.speculation                         # offline model and its draft, one stream and eight, look-ups
    python -m benchmarks.speculation --backend cpu           # the same with another attention_backend
    python -m benchmarks.speculation --shapes --out FILE     # on a GPU, the 8B shape with a draft of the 0.6B shape and with
                                                             # look-ups, too

Pairs are interleaved: with and without, then without and with; the ratio is the median over the pairs. The machine's load
stands beside the figures.
"""

import argparse
import datetime
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit, cpu, gpu, results_file
from benchmarks.speculation_copies import copies
from benchmarks.speculation_pairs import one_by_one, pairs
from benchmarks.speculation_shapes import many, shapes
from benchmarks.tensor_parallel import QWEN3_8B
from benchmarks.workloads import SHAPE
from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL

BY_MODEL = {"method": "draft_model", "model": str(DRAFT_MODEL), "num_speculative_tokens": 4}
LOOK_UP = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 1, "num_speculative_tokens": 8}
STORIES = [f"Tell me a story about a {who}." for who in ("fox", "bear", "hen", "wolf", "mouse", "owl", "cat", "duck")]
LISTS = ["fox, lantern, Mia, bell, bear, red, hen, Otto", "hen, fox, bell, red, bear, lantern, Otto, Mia",
         "bear, Otto, fox, hen, lantern, bell, Mia, red", "bell, hen, Mia, fox, red, Otto, bear, lantern"]


def chats(llm: LLM, texts: list[str]) -> list[str]:
    return [llm.render_chat([{"role": "user", "content": text}]) for text in texts]


def offline(say: Callable[[str, Any], None], runs: int, until: float, **settings: Any) -> None:
    """The model that ships with the package, and its draft."""
    if time.perf_counter() > until:
        return
    with LLM(**settings) as plain:
        for name, drafts in (("draft model", BY_MODEL), ("look-up", LOOK_UP)):
            with LLM(speculative_config=drafts, **settings) as drafting:
                if name == "look-up":
                    texts = chats(plain, [f"Please repeat: {words}." for words in LISTS])
                    asked = [SamplingParams(temperature=0, max_tokens=40)] * len(texts)
                    say("look-up, repeated lists, one at a time", one_by_one(plain, drafting, texts, asked, 2 * runs))
                for num_streams in (1, 8):
                    for temperature in (0.0, 1.0):
                        if time.perf_counter() > until:
                            return
                        params = [SamplingParams(temperature=temperature, seed=i, max_tokens=128, ignore_eos=True)
                                  for i in range(num_streams)]
                        say(f"{name}, {num_streams} streams, temperature {temperature:g}",
                            pairs(plain, drafting, chats(plain, STORIES[:num_streams]), params, runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="pairs of each")
    parser.add_argument("--backend", default="auto", help="attention_backend (auto)")
    parser.add_argument("--shapes", action="store_true", help="the 8B and 0.6B shapes, which need a GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, help="the results file (default: benchmarks/results/speculation-<machine>.json)")
    work = parser.parse_args()
    began = time.perf_counter()
    cuda = torch.cuda.is_available()
    results: dict[str, Any] = {"machine": gpu() if cuda else {
        "device": cpu(), "date": datetime.date.today().isoformat(), "commit": commit()},
        "threads": torch.get_num_threads(), "attention_backend": work.backend}
    backend = "" if work.backend == "auto" else f" {work.backend}"
    out = work.out or results_file(f"speculation-{results['machine']['device']}{backend}")

    def say(what: str, outcome: Any) -> None:
        if isinstance(outcome, dict):
            outcome["load"] = os.getloadavg()[0]
        results[what] = outcome
        print(f"{time.perf_counter() - began:6.1f} s  {what}: {json.dumps(outcome)}", flush=True)
        out.write_text(json.dumps(results, indent=1), encoding="utf-8")

    settings: dict[str, Any] = {"attention_backend": work.backend} | ({"max_num_seqs": 64, "dtype": "float32"} if cuda else {})
    until = began + work.seconds
    if work.shapes:  # first: their kernels take longest to compile, and what comes last is cut off where time is short
        small = SHAPE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16"}
        shapes(say, until, QWEN3_8B, small)
        copies(say, until, QWEN3_8B, work.runs)
        if time.perf_counter() < until:
            many(say, small)
    if cuda:  # the dtype that a GPU is used with; texts may part where two tokens are about as likely
        offline(lambda what, outcome: say(f"bfloat16, {what}", outcome), work.runs, until, **settings | {"dtype": "bfloat16"})
    offline(say, work.runs, until, **settings)
    if not work.shapes:
        many(say, None, num_out=32, runs=2, attention_backend=work.backend)


if __name__ == "__main__":
    main()
