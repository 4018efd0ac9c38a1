"""What look-ups gain where an answer repeats its prompt with edits, at the shape of a large model whose weights are random.

Random weights copy nothing. At a temperature of a million the noise alone decides a draw, and the noise follows from the seed
and the position: a request's answer is the same behind any prompt of the same length. So the answer is drawn first, and is
then part of the prompt, with some of its tokens replaced. The look-up finds what it would find where a model repeats a text
and edits it.
"""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.speculation_pairs import timed
from benchmarks.speculation_shapes import NOISE_ALONE, shape_folder
from nanovllm import LLM, SamplingParams

MOST = 8  # drafts
LOOK_UP = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 1, "num_speculative_tokens": MOST}


def edited(text: list[int], edits: float, vocab_size: int, rng: random.Random) -> list[int]:
    """The text with a share of its tokens replaced, each by one drawn from the whole vocabulary."""
    return [rng.randrange(vocab_size) if rng.random() < edits else token for token in text]


def copies(say: Callable[[str, Any], None], until: float, shape: dict[str, Any], runs: int, num_out: int = 256,
           asked: int = 64, streams: tuple[int, ...] = (1, 8), **settings: Any) -> None:
    """One engine with look-ups allowed and forbidden in turn; every answer is compared."""
    with shape_folder(shape) as folder:
        common: dict[str, Any] = {"load_format": "dummy", "max_num_seqs": max(streams), "max_model_len": 1024, **settings}
        with LLM(folder, speculative_config=LOOK_UP | {"disable_by_batch_size": MOST * max(streams) + 1}, **common) as llm:
            speculation, vocab_size, rng = llm.engine.speculation, shape["vocab_size"], random.Random(0)
            assert speculation is not None  # so configured
            params = [SamplingParams(temperature=NOISE_ALONE, seed=i, max_tokens=num_out, ignore_eos=True)
                      for i in range(max(streams))]

            def run(prompts: list[list[int]], most: int) -> tuple[float, list[list[int]], int, float]:
                speculation.most = most
                return timed(llm, prompts, params[:len(prompts)])

            for num_streams in streams:
                answers = run([[rng.randrange(vocab_size) for _ in range(asked + num_out)] for _ in range(num_streams)], 0)[1]
                for edits in (0.0, 0.05, 0.2):
                    prompts = [[rng.randrange(vocab_size) for _ in range(asked)] + edited(answer, edits, vocab_size, rng)
                               for answer in answers]
                    before = speculation.counts.drafted, speculation.counts.accepted
                    ratios, between, same, steps = [], [], True, (0, 0)
                    for i in range(runs + 1):
                        if time.perf_counter() > until:
                            return
                        plain, drafting = run(prompts, 0), run(prompts, MOST)
                        same, steps = same and plain[1] == drafting[1], (plain[2], drafting[2])
                        if i:  # the first is warm-up
                            ratios.append(plain[0] / drafting[0])
                            between.append(plain[3] / drafting[3])
                    drafted = speculation.counts.drafted - before[0]
                    say(f"look-up, large shape, {num_streams} streams, {edits:.0%} of the copy edited", {
                        "ratio": statistics.median(ratios), "ratio from first token to last": statistics.median(between),
                        "plain ms/token": 1000 * plain[3] / (num_out - 1), "steps": {"plain": steps[0], "drafting": steps[1]},
                        "drafts accepted": (speculation.counts.accepted - before[1]) / drafted if drafted else None,
                        "same text": same})
