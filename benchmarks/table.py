"""The README's table of results, made from the files in benchmarks/results/: `python -m benchmarks table`."""

import json
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.others import OTHERS

Row = tuple[str, str, str, str, str | None]  # section, work, key, form; of a section with several rows, how the row is called
ROWS: list[Row] = [
    ("mixed", "256 requests, 100-1024 tokens in, 100-1024 out", "output tok/s", "{:,.0f} tok/s", None),
    ("filtered", "the same with top_k 50, top_p 0.95", "output tok/s", "{:,.0f} tok/s", "top_k 50, top_p 0.95"),
    ("one", "one request, 128 in, 256 out", "ms/token", "{:.2f} ms a token", None),
    ("prefill", "64 prompts of 1024 tokens", "prompt tok/s", "{:,.0f} tok/s", None),
    ("long", "8 prompts of 16,384 tokens", "prompt tok/s", "{:,.0f} tok/s", None),
    ("start", "start to the first token, with a tokenizer, warm", "s", "{:.1f} s", "warm, with a tokenizer"),
    ("start, cold", "the same, nothing compiled yet", "s", "{:.1f} s", "cold, with a tokenizer"),
    ("shared prompt", "256 requests behind one system prompt of 512 tokens", "output tok/s", "{:,.0f} tok/s", None),
    ("1024 requests", "1024 requests, 100-1024 in, 100-1024 out", "output tok/s", "{:,.0f} tok/s", None)]
OF_A_SHAPE: list[Row] = [
    ("mixed", "256 requests", "output tok/s", "{:,.0f} tok/s", None),
    ("one", "one request", "ms/token", "{:.2f} ms a token", None),
    ("first token", "first token of a prompt of 128", "ms", "{:.1f} ms", "128")]


def section_row(results: dict[str, Any], section: str, called: str | None) -> dict[str, Any] | None:
    """A section's figures; of several rows the one whose first column holds `called`."""
    found = results.get(section.split(",")[0])
    if isinstance(found, list):
        found = next((row for row in found if str(next(iter(row.values()))) == called), None)
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown: our figures, for whatever the file holds. The others' were taken on an H200 and stand beside one's only, as
    do what we set out to reach there and the limit, what such a card could do at best."""
    shape = f"{results['shape']} " if "shape" in results else ""
    named = {name: f"{name} {version}" for name, version in OTHERS["engines"].items()} | {"target": "wanted", "limit": "limit"}
    if "H200" not in results["device"]:
        named = {}
    work = f"Qwen3-{results['shape']}'s shape" if "shape" in results else "work"
    lines = [f"| {work} | nanovllm |" + "".join(f" {title} |" for title in named.values()), "|---" * (2 + len(named)) + "|"]
    for section, work, key, form, called in OF_A_SHAPE if shape else ROWS:
        if row := section_row(results, section, called):
            others = OTHERS["works"].get(shape + section, {})
            cells = [form.format(row[key])] + [form.format(others[name]) if name in others else "" for name in named]
            lines.append(f"| {work} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def steps(results: dict[str, Any]) -> str:
    """Markdown: decode steps beside their floors."""
    kinds = ("attention", "matmul", "sampler")
    lines = ["| sequences x context | step | floor | attention | matmuls | sampler | GPU waits for the host |",
             "|---|---|---|---|---|---|---|"]
    for row in results.get("decode step", []):
        cells = [f"{row['sequences']} x {row['context']}", f"{row['gpu ms']:.2f} ms", f"{row['floor ms']:.2f} ms"]
        cells += [f"{row.get(f'{kind} ms', 0):.2f} ms" for kind in kinds] + [f"{row['exposed ms']:.3f} ms"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    for file in [*sorted(RESULTS.glob("*.json")), *sorted(RESULTS.glob("shapes/*.json"))]:
        results = json.loads(file.read_text(encoding="utf-8"))
        if "mixed" in results or "one" in results:
            print(f"{results['device']}, {results['date']}, commit {results['commit']}, torch {results['torch']}, "
                  f"triton {results['triton']}, bf16, random weights of Qwen3-{results.get('shape', '0.6B')}'s shape\n\n"
                  f"{table(results)}\n")
            if "decode step" in results:
                print(steps(results) + "\n")


if __name__ == "__main__":
    main()
