"""The README's table of results, made from the files in benchmarks/results/: `python -m benchmarks table`."""

import json
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.others import OTHERS

ROWS = [("mixed", "256 requests, 100-1024 tokens in, 100-1024 out", "output tok/s", "{:,.0f} tok/s"),
        ("one", "one request, 128 in, 256 out", "ms/token", "{:.2f} ms a token"),
        ("prefill", "64 prompts of 1024 tokens", "prompt tok/s", "{:,.0f} tok/s"),
        ("start", "start, import and construct, warm", "s", "{:.1f} s"),
        ("shared prompt", "256 requests behind one system prompt of 512 tokens", "output tok/s", "{:,.0f} tok/s"),
        ("1024 requests", "1024 requests, 100-1024 in, 100-1024 out", "output tok/s", "{:,.0f} tok/s")]  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Markdown: our figures, for whatever the file holds. The others' were taken on an H200 and stand beside one's only, as
    do what we set out to reach there and the limit, what such a card could do at best."""
    named = {name: f"{name} {version}" for name, version in OTHERS["engines"].items()} | {"target": "wanted", "limit": "limit"}
    if "H200" not in results["device"]:
        named = {}
    lines = ["| work | nanovllm |" + "".join(f" {title} |" for title in named.values()), "|---" * (2 + len(named)) + "|"]
    for section, work, key, form in ROWS:
        found = results.get(section)
        row = found[-1] if isinstance(found, list) else found
        if row:
            others = OTHERS["works"].get(section, {})
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
    for file in sorted(RESULTS.glob("*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        if "mixed" in results or "one" in results:
            print(f"{results['device']}, {results['date']}, commit {results['commit']}, torch {results['torch']}, "
                  f"triton {results['triton']}, bf16, random weights of Qwen3-0.6B's shape\n\n{table(results)}\n\n"
                  f"{steps(results)}")


if __name__ == "__main__":
    main()
