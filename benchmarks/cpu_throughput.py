"""The engine beside `transformers.generate` on this machine's CPU: 64 chat requests, the same work for both.

    python -m benchmarks cpu                        # three pairs, the table, and benchmarks/results/<machine>.json
    python -m benchmarks cpu --profile              # where the engine's own time goes, nothing written
    python -m benchmarks cpu --others               # beside openvino-genai and llama.cpp as well, if they are installed
    python -m benchmarks cpu --against CHECKOUT     # beside this project at another commit
    python -m benchmarks cpu --memory               # a Qwen3-0.6B shape in bfloat16 against what the memory gives

The first two compare with transformers in this process, through `auto`. `--others` and `--against` measure the CPU kernels,
plain PyTorch and the rest in a process each, in turn: chats, eight streams and one (see `cpu_comparison`).

Requests mix short and long prompts and answers, and most share a system prompt, as chat traffic does. `generate` gets
them sixteen at a time in order of arrival, padded on the left; each batch runs until its longest answer is done, because
that is how a padded batch works. Both decode greedily in float32 on the same number of threads, and neither stops at an
end token, so both owe exactly the same tokens; only those count, not what `generate` computes past a request's length.
"""

import argparse
import datetime
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.cpu_comparison import against_memory, compare, table
from benchmarks.cpu_engines import BATCH, run_transformers
from benchmarks.machine import commit, cpu, results_file
from nanovllm import LLM, SamplingParams
from nanovllm.config import OFFLINE_MODEL

SYSTEM = ("You are a patient helper who answers in short, plain sentences. Say so when you do not know something. Never "
          "invent a name, a number or a place; ask the reader one question at a time and keep every answer kind.")
TOPICS = ("a lost kitten", "rain on a tin roof", "why bread rises", "the road to the sea", "a letter to a friend",
          "how clocks tell time", "a garden in winter", "two brothers and a boat")
QUESTIONS = ("Tell me about {}.", "Write a story about {}, with a beginning and an end.", "What should a child know about {}?",
             "Explain {} to someone who has never heard of it, step by step, and then say it again in one line.")
Request = tuple[list[int], int]  # prompt token ids, tokens to generate


@contextmanager
def model_folder() -> Iterator[tuple[Path, str]]:
    """The offline model, or random weights of about its shape where it has not been trained yet; and which of them."""
    if (OFFLINE_MODEL / "config.json").is_file():
        yield OFFLINE_MODEL, "offline model"
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(
            vocab_size=4096, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.1)).save_pretrained(folder)
        yield Path(folder), "random weights, 6 layers of 256"


def chat_requests(llm: LLM, num_requests: int = 64, seed: int = 0) -> list[Request]:
    """Two in three share the system prompt; half carry earlier turns; answers are 16 to 128 tokens, mostly short."""
    rng = random.Random(seed)
    vocab_size = llm.config.hf_config.vocab_size

    def token_ids(messages: list[dict[str, Any]]) -> list[int]:
        if llm.tokenizer is not None:
            return llm.tokenizer.encode(llm.render_chat(messages))
        # Without a tokenizer each word stands for one token, the same one wherever it appears: prefixes stay shared.
        words = " ".join(f"<{m['role']}> {m['content']}" for m in messages).split()
        return [random.Random(word).randrange(vocab_size) for word in words]

    requests = []
    for _ in range(num_requests):
        messages = [{"role": "system", "content": SYSTEM}] if rng.random() < 2 / 3 else []
        for _ in range(rng.choice((0, 0, 1, 3))):
            messages.append({"role": "user", "content": rng.choice(QUESTIONS).format(rng.choice(TOPICS))})
            answer = " ".join(rng.choice(TOPICS) for _ in range(rng.randint(3, 12)))
            messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": rng.choice(QUESTIONS).format(rng.choice(TOPICS))})
        requests.append((token_ids(messages), rng.choice((16, 16, 24, 32, 48, 64, 96, 128))))
    return requests


def run_engine(llm: LLM, requests: list[Request]) -> list[list[int]]:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in requests]
    return [out.token_ids for out in llm.generate([prompt for prompt, _ in requests], params, use_tqdm=False)]


def seconds(call: Callable[..., list[list[int]]], *arguments: Any) -> tuple[float, list[list[int]]]:
    started = time.perf_counter()
    outputs = call(*arguments)
    return time.perf_counter() - started, outputs


def measure(folder: Path, pairs: int, threads: int) -> dict[str, Any]:
    """Alternate the two, and take the median: a machine that slows down for a while slows both.

    Every run of the engine starts from an empty prefix cache, in a new engine: what it shares, it shares within the run.
    """
    torch.set_num_threads(threads)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ours, theirs = [], []
    for pair in range(pairs + 1):
        with LLM(folder, device="cpu", dtype="float32") as llm:
            requests = chat_requests(llm)
            warm_up = pair == 0
            if warm_up:  # first calls choose kernels and fill caches of the libraries, for both
                requests = requests[:BATCH]
            engine_seconds, engine_tokens = seconds(run_engine, llm, requests)
        model_seconds, model_tokens = seconds(run_transformers, model, requests)
        if not warm_up:
            ours.append(engine_seconds)
            theirs.append(model_seconds)
    num_tokens = sum(n for _, n in requests)
    equal = sum(a == b for a, b in zip(engine_tokens, model_tokens, strict=True))
    return {
        "requests": len(requests), "prompt_tokens": sum(len(p) for p, _ in requests), "output_tokens": num_tokens,
        "identical_outputs": equal, "pairs": pairs, "threads": threads,
        "seconds": {"nanovllm": ours, "transformers": theirs},
        "tokens_per_second": {"nanovllm": num_tokens / statistics.median(ours),
                              "transformers": num_tokens / statistics.median(theirs)},
        "ratio": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that says whose machine it is."""
    import transformers
    return {"cpu": cpu(), "cores": torch.get_num_threads(), "torch": torch.__version__,
            "transformers": transformers.__version__, "date": datetime.date.today().isoformat(), "commit": commit()}


def profile(folder: Path, threads: int) -> None:
    """Time inside each operator, without its callees, over one warm run of the engine."""
    torch.set_num_threads(threads)
    with LLM(folder, device="cpu", dtype="float32") as llm:
        requests = chat_requests(llm)
        run_engine(llm, requests[:BATCH])
    with LLM(folder, device="cpu", dtype="float32") as llm:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as operators:
            run_engine(llm, requests)
    print(operators.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=44))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="measured pairs (3)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, for both (2)")
    parser.add_argument("--profile", action="store_true", help="where the engine's time goes, by operator")
    parser.add_argument("--others", action="store_true", help="beside transformers, openvino-genai and llama.cpp's server")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="beside this project as it is in another folder")
    parser.add_argument("--llama-server", default="llama-server", metavar="PROGRAM", help="llama.cpp's (llama-server)")
    parser.add_argument("--memory", action="store_true", help="decode a Qwen3-0.6B shape against the memory's speed")
    args = parser.parse_args()
    if args.pairs < 1 or args.threads < 1:
        parser.error(f"--pairs {args.pairs} --threads {args.threads}: both must be 1 or more")
    with model_folder() as (folder, kind):
        if args.profile:
            profile(folder, args.threads)
            return
        if args.memory:
            write(f"{cpu()} {args.threads} threads memory", machine() | against_memory(args.threads))
            return
        if args.others or args.against:
            if args.against and not (args.against / "nanovllm").is_dir():
                parser.error(f"--against {args.against}: no folder nanovllm in it; name a checkout of this project")
            with LLM(folder, device="cpu", dtype="float32") as llm:
                chats = chat_requests(llm)
            found = compare(folder, chats, args.pairs, args.threads, args.others, args.against, args.llama_server)
            print(f"{cpu()}, {args.threads} threads, {kind}\n{table(found)}\n\n{found['versions']}")
            write(f"{cpu()} {args.threads} threads others", machine() | {"model": kind} | found)
            return
        result = {"model": kind} | measure(folder, args.pairs, args.threads)
    result = machine() | result
    rates, times = result["tokens_per_second"], result["seconds"]
    print(f"{result['cpu']}, {result['threads']} threads, torch {result['torch']}, transformers {result['transformers']}\n"
          f"{kind}, float32: {result['requests']} chat requests, {result['prompt_tokens']} prompt tokens, "
          f"{result['output_tokens']} output tokens; {result['identical_outputs']} outputs identical\n")
    print(f"{'':26}{'tokens/s':>10}{'seconds (median)':>19}   runs")
    for name, label in (("transformers", f"transformers, batches of {BATCH}"), ("nanovllm", "nanovllm")):
        runs = " ".join(f"{s:.2f}" for s in times[name])
        print(f"{label:26}{rates[name]:10.0f}{statistics.median(times[name]):19.2f}   {runs}")
    print(f"\nratio {result['ratio']:.2f} (median of {args.pairs} pairs)")
    write(f"{result['cpu']} {result['threads']} threads", result)


def write(name: str, result: dict[str, Any]) -> None:
    file = results_file(name)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to benchmarks/results/{file.name}")


if __name__ == "__main__":
    main()
