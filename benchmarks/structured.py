"""What an answer's shape costs: the same requests with a schema and without, in one process, in turn.

    python -m benchmarks structured                                     # the offline model, 64 sequences
    python -m benchmarks structured --model FOLDER --pairs 5 --json FILE

Both kinds generate as many tokens: the schema is an array of any length of small objects, which never ends before max_tokens,
and the others ignore the end-of-sequence token. The ratio is that of tokens per second; its target on a GPU is 0.9.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from nanovllm import LLM, SamplingParams, StructuredOutputsParams

SCHEMA = {"type": "array", "items": {"type": "object", "additionalProperties": False, "required": ["name", "size", "tags"],
          "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer", "minimum": 0, "maximum": 999},
                         "tags": {"type": "array", "items": {"enum": ["red", "old", "small"]}, "minItems": 1, "maxItems": 3}}},
          "minItems": 200}


def seconds(llm: LLM, params: SamplingParams, num_sequences: int) -> tuple[float, float]:
    """By the clock on the wall, and of processor time, which other work on the machine disturbs less."""
    prompts = [[40 + i, 41, 42, 43] for i in range(num_sequences)]
    wall, processor = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    took = time.perf_counter() - wall, time.process_time() - processor
    found = sum(len(out.token_ids) for out in outputs)
    assert found == num_sequences * params.max_tokens, f"{found} tokens: an answer ended early"
    return took


def measure(model: str | None, num_sequences: int, num_tokens: int, pairs: int, **settings: Any) -> dict[str, Any]:
    """Tokens per second of each kind and their ratio, medians of `pairs` runs of each in turn."""
    common: dict[str, Any] = dict(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    plain = SamplingParams(**common)
    shaped = SamplingParams(**common, structured_outputs=StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True))
    with LLM(model, **settings) as llm:
        for params in (plain, shaped):  # what is compiled once is compiled by now
            seconds(llm, params, num_sequences)
        times = [(seconds(llm, plain, num_sequences), seconds(llm, shaped, num_sequences)) for _ in range(pairs)]
        device = str(llm.config.device)
    tokens = num_sequences * num_tokens
    without, shaped_seconds = (median(run[kind][0] for run in times) for kind in (0, 1))
    return {"device": device, "sequences": num_sequences, "tokens": num_tokens, "pairs": pairs,
            "plain tokens/s": tokens / without, "shaped tokens/s": tokens / shaped_seconds,
            "ratio": median(a[0] / b[0] for a, b in times), "ratio by processor time": median(a[1] / b[1] for a, b in times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args()
    row = measure(given.model, given.sequences, given.tokens, given.pairs)
    print(f"{row['sequences']} sequences of {row['tokens']} tokens on {row['device']}: {row['plain tokens/s']:.0f} tokens/s "
          f"without a schema, {row['shaped tokens/s']:.0f} with one, {row['ratio']:.2f} of it; by processor time "
          f"{row['ratio by processor time']:.2f}")
    if given.json:
        given.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
