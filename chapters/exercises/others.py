"""Other engines' figures (benchmarks/results/others-nvidia-h200.json) beside what the repository recorded of this one."""

import json
import statistics

from benchmarks.machine import RESULTS
from benchmarks.others import OTHERS

from .recorded import recorded_rows

WORKS = {"mixed": ("256 requests,\n100 to 1024 in and out", "{:,.0f} tok/s"),
         "one": ("one request, 128 in, 256 out", "{:.2f} ms"), "prefill": ("prefill of 64 x 1024", "{:,.0f} tok/s")}
OURS = "this engine"
ON_A_CPU = {  # names in the file, and on the picture; all in float32
    "nanovllm, float32": OURS, "nanovllm, plain PyTorch": "this engine, plain PyTorch",
    "openvino-genai, float32": "openvino-genai",
    "llama.cpp, float32": "llama.cpp", "transformers, float32": "transformers"}


def _ours(subject: str) -> list[dict]:
    """Our recorded rows on the kind of card on which the others were measured; none when there is no such run."""
    return next((rows for where, rows in recorded_rows(subject) if f"on {OTHERS['machine']}," in where), [])


def shares_of_the_limit() -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """({work, with its limit: {engine: per cent of what the card allows}}, {the same: {engine: its figure, in words}})."""
    works, words = {}, {}
    for work, (name, form) in WORKS.items():
        row = OTHERS["works"][work]
        figures = {engine: row[engine] for engine in OTHERS["engines"]}
        if ours := _ours(work):
            figures = {OURS: ours[-1][row["unit"]]} | figures
        slow = row["unit"] == "ms/token"  # the less the better
        name += f"\nat best {form.format(row['limit'])}"
        works[name] = {who: 100 * (row["limit"] / value if slow else value / row["limit"]) for who, value in figures.items()}
        words[name] = {who: form.format(value) for who, value in figures.items()}
    return works, words


def milliseconds_alone() -> dict[str, float]:
    """{engine: ms per token} of one request alone."""
    row = OTHERS["works"]["one"]
    ours = _ours("one")
    return ({OURS: ours[-1][row["unit"]]} if ours else {}) | {engine: row[engine] for engine in OTHERS["engines"]}


def parts_of_a_step() -> dict[str, dict[str, float]]:
    """{engine: {part: ms}} of a decode step of 256 sequences. vLLM's is what its GPU did; of its host nothing is known."""
    found = {}
    ours = [row for row in _ours("decode step") if row["sequences"] == 256]
    for who, row in [(OURS, row) for row in ours] + list(OTHERS["step of 256"].items()):
        parts = {"attention": row["attention ms"], "matrices": row["matmul ms"], "the draw": row["sampler ms"]}
        waited = row.get("exposed ms", 0.0)
        busy = row["gpu ms"] if "gpu ms" in row else row["step ms"] - waited
        parts["everything else"] = max(0.0, busy - sum(parts.values()))
        found[who] = parts | ({"GPU waits for the host": waited} if "exposed ms" in row else {})
    return found


def on_a_cpu() -> tuple[dict[str, dict[str, float]], str]:
    """({work: {engine: tokens/s, the median of its runs}}, machine, date, commit, versions) of `benchmarks cpu --others`."""
    kept = json.loads((RESULTS / "intel-r-xeon-r-processor-2-threads-others.json").read_text(encoding="utf-8"))
    works = {}
    for name, runs in kept["works"].items():
        works[f"{name},\n{runs['tokens']:,} tokens"] = {
            told: runs["tokens"] / statistics.median(runs[who]["wall"]) for who, told in ON_A_CPU.items()}
    versions = kept["versions"]
    others = ", ".join(f"{told} {versions[who].split(',')[0].removeprefix('xllamacpp ').split('-')[0]}"
                       for who, told in ON_A_CPU.items() if not told.startswith(OURS))
    return works, f"{kept['cpu']}, {kept['cores']} cores, {kept['date']}, commit {kept['commit']}; {others}"


def told_as(figure: int | float | str | list | None) -> str:
    """A figure of `measured again` as a cell: thousands separated, a list as its members, nothing as a dash."""
    if isinstance(figure, list):
        return "; ".join(map(told_as, figure))
    if figure is None:
        return "–"
    return f"{figure:,}" if isinstance(figure, int) else str(figure)
