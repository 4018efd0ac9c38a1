"""Other engines' figures (benchmarks/results/others-nvidia-h200.json) beside what the repository recorded of this one."""

import json
import statistics

from benchmarks.machine import RESULTS
from benchmarks.others import OTHERS
from benchmarks.table import section_row

from .recorded import recorded_rows

WORKS = {"mixed": ("256 requests,\n100 to 1024 in and out", "{:,.0f} tok/s"),
         "one": ("one request, 128 in, 256 out", "{:.2f} ms"), "prefill": ("prefill of 64 x 1024", "{:,.0f} tok/s")}
OURS = "this engine"
ON_A_CPU = {  # names in the file, and on the picture; all in float32
    "nanovllm, float32": OURS, "nanovllm, plain PyTorch": "this engine, plain PyTorch",
    "openvino-genai, float32": "openvino-genai",
    "llama.cpp, float32": "llama.cpp", "transformers, float32": "transformers"}
# Where the newest recording has what was "measured again": (shape, section, called, key), in the order of those works.
AGAIN = (("", "filtered", "top_k 50, top_p 0.95", "output tok/s"), ("8B", "first token", "128", "ms"),
         ("8B", "mixed", None, "output tok/s"), ("8B", "one", None, "ms/token"), ("", "long", None, "prompt tok/s"),
         ("", "long", None, "decode ms/step"), ("", "start", "warm, with a tokenizer", "s"),
         ("", "start", "cold, with a tokenizer", "s"))


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


def parts_of_a_step() -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """({engine: {part: ms}} of a decode step of 256 sequences, {engine: ms until it was done}, where parts overlap).

    *Norms* are what the profiler saw of them; what is in no kernel that has a name here, gaps between kernels included, is
    *everything else*. Of vLLM's step only its GPU's part is known, and its norms are in *everything else*.
    """
    found, done = {}, {}
    ours = [row for row in _ours("decode step") if row["sequences"] == 256]
    for who, row in [(OURS, row) for row in ours] + list(OTHERS["step of 256"].items()):
        parts = {"attention": row["attention ms"], "matrices": row["matmul ms"], "the draw": row["sampler ms"]}
        norms = row.get("norms, RoPE, gate, store ms", row.get("norms, RoPE ms"))
        if norms is not None:
            parts["norms, RoPE"] = norms
        waited = row.get("exposed ms", 0.0)
        busy = row["gpu ms"] if "gpu ms" in row else row["step ms"] - waited
        if "idle between kernels ms" in row:  # all its kernels are named; some run beside others, so the sum is more
            parts["everything else"] = row["other ms"] + row["rows ms"] + row["idle between kernels ms"]
            done[who] = busy + waited
        else:
            parts["everything else"] = busy - sum(parts.values())
        found[who] = parts | ({"GPU waits for the host": waited} if "exposed ms" in row else {})
    return found, done


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


def measured_again() -> tuple[list[list[str | int | float | None]], str]:
    """(rows: work, unit, our figure of then, our newest, each of the others'; "date, commit" of the newest).

    All engines but ours were run once, on the day of *then*. Where the repository has no newer recording, it is None.
    """
    kept = {shape: json.loads(file.read_text(encoding="utf-8")) for shape, file in
            (("", RESULTS / "nvidia-h200.json"), ("8B", RESULTS / "shapes" / "nvidia-h200-8b.json")) if file.is_file()}
    rows = []
    for row, (shape, section, called, key) in zip(OTHERS["measured again"]["works"], AGAIN, strict=True):
        newest = section_row(kept.get(shape, {}), section, called)
        figures = [row["nanovllm"], newest and newest[key], *(row.get(name) for name in OTHERS["engines"])]
        rows.append([row["work"], row["unit"], *figures])
    return rows, ", ".join(kept[""][key] for key in ("date", "commit")) if "" in kept else "not recorded"
