"""`python -m nanovllm demo`: three chats that share a system prompt, served together, and what each step did.

`python -m nanovllm serve` is nanovllm/server; `batch` and `simulate` are nanovllm/fleet.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL, MOE_MODEL, OFFLINE_MODEL
from nanovllm.errors import EngineError, RequestFailed
from nanovllm.fleet import command as fleet_command
from nanovllm.server import command
from nanovllm.tracing.trace import Trace

SYSTEM = ("You are a kind storyteller. You tell short stories for children in simple words. Every story has a hero, "
          "a small wish and a happy end.")
REQUESTS = ("Tell me a story about a fox and a lantern.",
            "Tell me a story about a hen and a kite.",
            "Tell me a story about a bear and a bell.")
# For any other model than ours, which knows nothing but stories.
INSTRUCTION = ("You are a helpful assistant who explains things to curious people of any age. You answer in two or three plain "
               "sentences, without lists.")
QUESTIONS = ("Why is the sky blue?", "What does a bicycle's gear do?", "Why do cats purr?")


def demo(llm: LLM, max_tokens: int, system: str = SYSTEM, requests: Sequence[str] = REQUESTS) -> list[str]:
    """Stream the chats into one panel each, then print the table of steps; returns the answers."""
    print(f"{llm!r}\n")
    prompts = [llm.render_chat([{"role": "system", "content": system}, {"role": "user", "content": r}]) for r in requests]
    texts = [""] * len(prompts)
    params = [SamplingParams(temperature=0.7, max_tokens=max_tokens, seed=i) for i in range(len(prompts))]
    live = sys.stdout.isatty()
    with llm.trace() as trace:
        for index, piece in llm.stream(prompts, params):
            texts[index] += piece
            if live:
                print(f"\r\x1b[K[{index}] …{_tail(texts[index])}", end="", flush=True)
    print("\r\x1b[K" if live else "", end="")
    for request, text in zip(requests, texts):
        print(f"> {request}\n{text.strip()}\n")
    print(steps_table(trace))
    return texts


def _tail(text: str) -> str:
    return " ".join(text.split())[-(shutil.get_terminal_size().columns - 8):]


def steps_table(trace: Trace, head: int = 6, tail: int = 4) -> str:
    """The first and last steps of a run, a row each, and its totals."""
    columns = ("step", "prompt tokens", "decode tokens", "running", "waiting", "blocks in use", "ms")
    rows: list[tuple[object, ...]] = [
        (r.step, r.num_prefill_tokens, r.num_decode_tokens, len(r.running), len(r.waiting), r.num_blocks_in_use,
         f"{r.duration * 1e3:.1f}") for r in trace]
    hidden = len(rows) - head - tail
    shown = rows if hidden <= 0 else rows[:head] + [("…",) * len(columns)] + rows[-tail:]
    lines = ["  ".join(f"{cell!s:>{len(name)}}" for cell, name in zip(row, columns)) for row in (columns, *shown)]
    seconds = sum(r.duration for r in trace)
    decoded = sum(r.num_new_tokens for r in trace)
    hits = sum(sum(r.hit_tokens.values()) for r in trace)
    lines.append(f"\n{len(trace)} steps, {decoded} tokens generated in {seconds:.2f} s ({decoded / seconds:.0f} tokens/s), "
                 f"{hits} prompt tokens found in the prefix cache")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="nanovllm", description="The readable inference engine.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("demo", help="serve a few chat prompts and show what each step did")
    run.add_argument("--model", help="model folder, GGUF file or 'smollm2' (default: the offline model)")
    run.add_argument("--max-tokens", type=int, default=120)
    run.set_defaults(run=run_demo)
    run = commands.add_parser("serve", help="serve a model over HTTP, as the OpenAI API does")
    command.add_arguments(run)
    fleet_command.add_serve_arguments(run)
    run.set_defaults(run=fleet_command.serve)
    run = commands.add_parser("batch", help="answer a file of requests, in the OpenAI batch format")
    fleet_command.add_batch_arguments(run)
    run.set_defaults(run=fleet_command.batch)
    run = commands.add_parser("simulate", help="ask what a fleet of engines would do under some traffic")
    fleet_command.add_simulate_arguments(run)
    run.set_defaults(run=fleet_command.simulate)
    arguments = vars(parser.parse_args(argv))
    del arguments["command"]
    try:
        arguments.pop("run")(**arguments)
    except ValueError as error:
        parser.error(str(error))
    except EngineError as error:
        if isinstance(error, RequestFailed):  # where a step failed is worth knowing
            raise
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        if error.filename is None:
            raise
        parser.exit(1, f"{parser.prog}: error: {error.filename}: {error.strerror}; name another file or folder.\n")


def run_demo(model: str | None, max_tokens: int) -> None:
    with LLM(model) as llm:
        if llm.config.model in (OFFLINE_MODEL, DRAFT_MODEL, MOE_MODEL):
            demo(llm, max_tokens)
        else:
            demo(llm, max_tokens, INSTRUCTION, QUESTIONS)


if __name__ == "__main__":
    main()
