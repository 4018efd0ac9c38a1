"""Chapter 14: floors, memory, and a comparison that a drifting machine cannot fool."""

import random
import statistics
from collections import defaultdict
from types import SimpleNamespace

import visualizations as viz
from benchmarks import roofline, workloads
from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence
from nanovllm.tracing.trace import Trace
from visualizations.figures.gpu_timeline import operations_of

from .recorded import recorded_rows
from .tables import Table
from .verdict import check, require


def steps_under_their_roof():
    """A roofline for each GPU whose decode steps are recorded: what a step must read and compute, in the time it took.

    The number at a point is the step's floor as a share of its time; the parts of a step follow one another, so that is a
    little more than its share of the roof. The memory's speed is the one that the recorded floors were counted with.
    """
    ceilings = {where: rows[0] for where, rows in recorded_rows("ceilings")}
    for where, steps in recorded_rows("decode step"):
        points, speeds = [], []
        for step in steps:
            work = roofline.decode_work(SimpleNamespace(**workloads.SHAPE), [step["context"]] * step["sequences"])
            points.append(viz.Measured(f"{step['sequences']} at once", sum(w.flops for w in work.values()),
                                       sum(w.bytes for w in work.values()), step["gpu ms"] / 1e3, step["floor ms"] / 1e3))
            speeds.append(work["attention"].bytes / (step["floor attention ms"] / 1e3))
        yield viz.plot_roofline(points, peak_flops=ceilings[where]["matmul FLOP/s"], bandwidth=statistics.median(speeds),
                                device="a decode step, " + where)


def kernel_times(trace: Trace, index: int) -> dict[str, list[float]]:
    """{kernel: microseconds of each of its runs} in a profiled step."""
    spent: dict[str, list[float]] = defaultdict(list)
    for operation in operations_of(trace, trace[index])[1]:
        spent[operation["name"]].append(operation["duration"] * 1e6)
    return spent


def by_kernel(trace: Trace, index: int, most: int = 8) -> Table:
    """The kernels of a profiled step, grouped by name, the most expensive first; the rest in one line."""
    work, spent = operations_of(trace, trace[index])[1], kernel_times(trace, index)
    ordered = sorted(spent.items(), key=lambda item: -sum(item[1]))
    whole = sum(map(sum, spent.values()))
    rows = [[name[:44], len(each), sum(each) / len(each), sum(each), 100 * sum(each) / whole] for name, each in ordered[:most]]
    rest = [each for _, group in ordered[most:] for each in group]
    rows.append([f"{len(ordered) - most} others", len(rest), sum(rest) / len(rest), sum(rest), 100 * sum(rest) / whole])
    span = max(o["time"] + o["duration"] for o in work) - min(o["time"] for o in work)
    where = (f"Busy {whole / 1e3:.2f} ms of the {span * 1e3:.2f} ms between the first and the last kernel. Recorded on "
             f"{trace.meta['device']}, {trace.meta['date']}, commit {trace.meta['commit']}, under the profiler.")
    return Table(["kernel", "times", "µs each", "µs together", "% of the GPU's work"], rows, where)


@check("the floor of a step")
def check_step_floor(step_floor):
    """step_floor(work, bandwidth, peak): work is a list of (bytes, flops), done one after another -> least seconds."""
    draw = random.Random(0)
    cases = [[(1e9, 1e9)], [(1e9, 1e15)], [(1e9, 1e9), (1e6, 1e15)]]
    cases += [[(draw.uniform(1e6, 1e10), draw.uniform(1e9, 1e15)) for _ in range(draw.randrange(1, 5))] for _ in range(50)]
    for work in cases:
        right = sum(max(b / 4e12, f / 8e14) for b, f in work)
        got = step_floor(list(work), 4e12, 8e14)
        shown = ", ".join(f"({b:.2g} bytes, {f:.2g} flops)" for b, f in work)
        hint = f"{shown} at 4 TB/s and 800 TFLOP/s: {right * 1e3:.8g} ms, not {got * 1e3:.8g} ms."
        if abs(got - sum(b / 4e12 + f / 8e14 for b, f in work)) < 1e-9 * right:
            hint += " Reading and computing overlap: a piece takes the longer of the two, not their sum."
        elif abs(got - max(sum(b for b, _ in work) / 4e12, sum(f for _, f in work) / 8e14)) < 1e-9 * right:
            hint += " The pieces come one after another: while one waits for memory, the next cannot compute yet."
        elif abs(got - 1e3 * right) < 1e-6 * right:
            hint += " The answer is wanted in seconds."
        require(abs(got - right) <= 1e-6 * right, hint)
    return f"{len(cases)} steps of one to four pieces."


@check("the largest batch")
def check_largest_batch(largest_batch):
    """largest_batch(total, weights, activations, bytes_per_token, length, block_size) -> sequences of `length` tokens."""
    cases = [(9_000, 2_000, 1_500, 10, 100, 16), (8_000, 2_000, 1_000, 10, 96, 16), (4_000, 2_000, 1_000, 10, 97, 16),
             (2_900, 2_000, 1_000, 10, 10, 1), (10_000, 0, 0, 7, 33, 8)]
    for total, weights, activations, per_token, length, size in cases:
        blocks = max(0, (total - weights - activations) // (per_token * size))
        right = _served_at_once(blocks, size, length) if blocks else 0
        got = largest_batch(total, weights, activations, per_token, length, size)
        hint = (f"{total} bytes, weights {weights}, activations {activations}, {per_token} bytes per token, {length} tokens "
                f"each, blocks of {size}: the block manager serves {right} at once, you say {got}.")
        if got > right and got == max(0, total - weights - activations) // (per_token * length):
            hint += " A sequence owns whole blocks, and the cache has whole blocks only."
        elif got > right:
            hint += " Is everything subtracted that is not cache?"
        require(got == right, hint)
    return f"{len(cases)} budgets, each tried on the real block manager."


def _served_at_once(num_blocks: int, block_size: int, length: int) -> int:
    """How many sequences the real block manager can hold at full length."""
    manager, count = BlockManager(num_blocks, block_size, enable_prefix_caching=False), 0
    while True:
        seq = Sequence(count, list(range(length)), SamplingParams())
        if manager.num_new_blocks(seq, length) > manager.num_free_blocks:
            return count
        manager.append(seq, length)
        count += 1


class _Drifting:
    """Two pieces of work on a machine that gets slower while it is measured, and now and then is busy with something else."""

    def __init__(self, seed: int, ratio: float):
        self.draw, self.ratio, self.order = random.Random(seed), ratio, ""

    @property
    def calls(self) -> int:
        return len(self.order)

    def _seconds(self, name: str, cost: float) -> float:
        self.order += name
        busy = self.draw.choice((0, 0, 0, 0, 0, 0, 3.0))
        return cost * (1 + 0.03 * self.calls) * self.draw.uniform(0.99, 1.01) * (1 + busy)

    def a(self) -> float:
        return self._seconds("a", 1.0)

    def b(self) -> float:
        return self._seconds("b", self.ratio)


@check("a fair comparison")
def check_fair_ratio(fair_ratio):
    """fair_ratio(a, b): a() and b() run once and return seconds -> how many times as long b takes. At most 60 calls."""
    for seed, ratio in enumerate((1.0, 1.25, 0.8, 2.0, 1.02)):
        machine = _Drifting(seed, ratio)
        got = fair_ratio(machine.a, machine.b)
        require(machine.calls <= 60, f"{machine.calls} measurements were taken; 60 must do.")
        require(machine.calls >= 2, "nothing was measured.")
        if abs(got / ratio - 1) > 0.05:
            hint = f"b really takes {ratio} times as long as a; you found {got:.2f}."
            if "ba" not in machine.order or "ab" not in machine.order:
                hint += " The machine slows down while it is measured. All of one was measured after all of the other."
            else:
                hint += " Now and then something else keeps the machine busy. What does one such time do to a mean?"
            require(False, hint)
    return "five pairs on a machine that slows down and is interrupted: each ratio found to 5%."


def at_once(count: int, prompts: list[list[int]], params: SamplingParams) -> tuple[float, float]:
    """(tokens/s, milliseconds between tokens of one answer) of the offline model with `count` requests at once."""
    with LLM(max_num_seqs=count, enable_prefix_caching=False) as llm:
        requests = [prompts[i % len(prompts)] for i in range(count)]
        llm.generate(requests, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), use_tqdm=False)
        outputs = llm.generate(requests, params, use_tqdm=False)
    gaps = [gap for output in outputs for gap in output.timings.inter_token]
    spent = max(output.timings.total for output in outputs)
    return sum(len(output.token_ids) for output in outputs) / spent, statistics.median(gaps) * 1e3
