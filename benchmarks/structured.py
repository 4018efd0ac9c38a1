"""What an answer's shape costs: the same requests with a schema and without, in one process, in turn.

    python -m benchmarks structured                                     # the offline model, 64 sequences
    python -m benchmarks structured --model FOLDER --pairs 5 --json FILE
    python -m benchmarks structured --random-weights TOKENIZER.json     # Qwen3-0.6B's shape behind that vocabulary

Both kinds generate as many tokens: the schema is an array of any length of small objects, which never ends before max_tokens,
and the others ignore the end-of-sequence token. The ratio is that of tokens per second; its target on a GPU is 0.9.
"""

import argparse
import json
import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import workloads
from benchmarks.breakdown import Watch
from nanovllm import LLM, SamplingParams, StructuredOutputsParams

SCHEMA = {"type": "array", "items": {"type": "object", "additionalProperties": False, "required": ["name", "size", "tags"],
          "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer", "minimum": 0, "maximum": 999},
                         "tags": {"type": "array", "items": {"enum": ["red", "old", "small"]}, "minItems": 1, "maxItems": 3}}},
          "minItems": 200}


def seconds(llm: LLM, params: SamplingParams, num_sequences: int, num_prompt_tokens: int) -> tuple[float, float]:
    """By the clock on the wall, and of processor time, which other work on the machine disturbs less."""
    prompts = [[40 + i, *range(41, 40 + num_prompt_tokens)] for i in range(num_sequences)]
    wall, processor = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    took = time.perf_counter() - wall, time.process_time() - processor
    found = sum(len(out.token_ids) for out in outputs)
    assert found == num_sequences * params.max_tokens, f"{found} tokens: an answer ended early"
    return took


def measure(model: str | Path | None, num_sequences: int, num_tokens: int, pairs: int, num_prompt_tokens: int = 4,
            options: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Tokens per second of each kind and their ratio, medians of `pairs` runs of each in turn; on a GPU, where a step's time
    goes. options: for all requests; greedy without any."""
    common: dict[str, Any] = dict(max_tokens=num_tokens, ignore_eos=True) | (options or dict(temperature=0))
    plain = SamplingParams(**common)
    shaped = SamplingParams(**common, structured_outputs=StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True))
    with LLM(model, **settings) as llm:
        def run(params: SamplingParams) -> tuple[float, float]:
            llm.engine.block_manager.reset_prefix_cache()
            return seconds(llm, params, num_sequences, num_prompt_tokens)

        for params in (plain, shaped):  # what is compiled once is compiled by now
            run(params)
        times = [(run(plain), run(shaped)) for _ in range(pairs)]
        device, steps = str(llm.config.device), {}
        for name, params in (("plain", plain), ("shaped", shaped)) if llm.config.device.type == "cuda" else ():
            watch = Watch()
            with watch.on(llm.engine):
                run(params)
            steps[name] = watch.summary()
    tokens = num_sequences * num_tokens
    without, shaped_seconds = (median(run[kind][0] for run in times) for kind in (0, 1))
    return {"device": device, "sequences": num_sequences, "tokens": num_tokens, "prompt tokens": num_prompt_tokens,
            "pairs": pairs, "options": options or {},
            "plain tokens/s": tokens / without, "shaped tokens/s": tokens / shaped_seconds,
            "ratio": median(a[0] / b[0] for a, b in times), "ratio by processor time": median(a[1] / b[1] for a, b in times),
            "steps": steps}


def random_model(tokenizer: Path, folder: Path) -> Path:
    """Config and tokenizer of a model of Qwen3-0.6B's shape, to be loaded with random weights."""
    told = json.loads(tokenizer.read_text(encoding="utf-8"))
    ends = {token["content"]: token["id"] for token in told.get("added_tokens", [])}
    end = ends.get("<|im_end|>", max(told["model"]["vocab"].values()))  # of a vocabulary without Qwen's, any token
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16", "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config | workloads.SHAPE), encoding="utf-8")
    shutil.copy(tokenizer, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--random-weights", type=Path, metavar="TOKENIZER", help="Qwen3-0.6B's shape, this tokenizer.json")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help="sampling parameters of all requests, as JSON")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args()
    settings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() if given.random_weights else nullcontext("") as folder:
        model = given.model
        if given.random_weights:
            model, settings = random_model(given.random_weights, Path(folder)), {"load_format": "dummy", "max_model_len": 4096}
        row = measure(model, given.sequences, given.tokens, given.pairs, given.prompt_tokens, given.options, **settings)
    print(f"{row['sequences']} sequences of {row['tokens']} tokens on {row['device']}: {row['plain tokens/s']:.0f} tokens/s "
          f"without a schema, {row['shaped tokens/s']:.0f} with one, {row['ratio']:.2f} of it; by processor time "
          f"{row['ratio by processor time']:.2f}")
    for name, step in row["steps"].items():
        print(f"  a {name} step: " + ", ".join(f"{part} {ms:.2f}" for part, ms in step.items() if part.endswith("ms")))
    if given.json:
        given.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
