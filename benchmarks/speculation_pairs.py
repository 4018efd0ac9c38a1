"""An engine that drafts beside one that does not, in turn, in one process: their times, and whether the text is the same."""

import statistics
import time
from typing import Any

from nanovllm import LLM, SamplingParams


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


def one_by_one(plain: LLM, drafting: LLM, texts: list[str], params: list[SamplingParams], runs: int) -> dict[str, Any]:
    each = [pairs(plain, drafting, [text], [one], runs) for text, one in zip(texts, params)]
    return {"ratio": statistics.median(e["ratio"] for e in each), "same text": all(e["same text"] for e in each),
            "ratio from first token to last": statistics.median(e["ratio from first token to last"] for e in each),
            "steps": [e["steps"] for e in each], "ratios": [e["ratio"] for e in each],
            "ratios of processor time": [e["ratio of processor time"] for e in each]}
