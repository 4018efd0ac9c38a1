"""Chapter 05: what can ever fit, a watermark of one's own, and the best victim."""

import random
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.fleet.simulation import Simulation
from nanovllm.tracing.trace import Trace

from .ch04 import Workbench, measure
from .tables import Table
from .verdict import check, require


def busy_evening(simulation: Simulation, seed: int = 0) -> Trace:
    """Sixteen prompts of 4 to 24 tokens, arriving every step or two. Each generates up to 39 more tokens and runs to that
    limit: a simulated token never ends an answer."""
    return _fill(simulation, seed).run()


def _fill(simulation: Simulation, seed: int) -> Simulation:
    draw = random.Random(seed)
    at = 0
    for _ in range(16):
        simulation.add(draw.randrange(4, 25), draw.choice([6, 15, 25, 39]), at=at)
        at += draw.randrange(3)
    return simulation


def step_seconds(batch: ScheduledBatch) -> float:
    """Chapter 04's made-up step: 10 ms for reading the weights, and 0.2 ms per token."""
    return 0.010 + 0.0002 * batch.num_tokens


def recomputed(trace: Trace) -> int:
    """Prompt tokens computed beyond the once that each needs. Of runs without prefix caching."""
    return sum(r.num_prefill_tokens for r in trace) - sum(trace.meta["prompts"].values())


def preemptions(trace: Trace) -> int:
    return sum(len(r.preempted) for r in trace)


def reserves(trace: Trace) -> list[int]:
    """After each step: the blocks that `Reserves` keeps free for those who run, one each, and those that admitted prompts
    still need for chunks to come."""
    size, drawn, kept = trace.meta["block_size"], Counter[int](), []
    for record in trace:
        drawn.update(record.tokens.keys())
        wanted = {i: -(-(trace.meta["prompts"][i] + drawn[i]) // size) for i in record.running}
        missing = (max(0, blocks - len(record.block_tables.get(i, ()))) for i, blocks in wanted.items())
        kept.append(len(record.running) + sum(missing))
    return kept


def gaps(trace: Trace, seq_id: int) -> dict[int, float]:
    """{n: milliseconds from token n - 1 of an answer to token n}, the first token being number 1."""
    times = [record.time + record.duration for record in trace if seq_id in record.tokens]
    return {n: 1e3 * (after - before) for n, (before, after) in enumerate(pairwise(times), 2)}


def table(evenings: Mapping[int, Trace]) -> Table:
    """A row for each size of the cache. evenings: {number of blocks: trace}."""
    header = ("blocks", "steps", "preemptions", "tokens computed again", "tokens/s", "mean TTFT (s)", "longest gap (s)")
    rows = []
    for num_blocks, trace in evenings.items():
        rate, *waits = measure(trace)
        counts = len(trace), preemptions(trace), recomputed(trace), round(rate)
        rows.append((num_blocks, *counts, *(round(seconds, 2) for seconds in waits)))
    return Table(header, rows)


def means_table(rules: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each rule of admission. rules: {name: what `mean_outcomes` returns}."""
    rows = [(name, round(means["tokens/s"]), *(means[what] for what in ("mean TTFT", "longest gap", "preemptions")))
            for name, means in rules.items()]
    return Table(("rule", "tokens/s", "mean TTFT (s)", "longest gap (s)", "preemptions"), rows)


def mean_outcomes(scheduler_cls: type[Scheduler], num_blocks: int, evenings: int = 20) -> dict[str, float]:
    """What so many evenings come to on average: {"tokens/s", "mean TTFT", "longest gap" (both seconds), "preemptions"}."""
    rows = []
    for seed in range(evenings):
        trace = _evening(scheduler_cls, seed, num_blocks).run()
        rows.append((*measure(trace), preemptions(trace)))
    names = ("tokens/s", "mean TTFT", "longest gap", "preemptions")
    return {name: sum(column) / evenings for name, column in zip(names, zip(*rows), strict=True)}


def note_preemption(batch: ScheduledBatch, seq: Sequence) -> None:
    """For the records: status, counter, and the reason that the pictures show."""
    seq.status = SequenceStatus.PREEMPTED
    seq.num_preemptions += 1
    batch.preempted.append(seq)
    batch.preemption_reasons[seq.seq_id] = "a running sequence needs its blocks"


class Admission(Workbench):
    """Running sequences first, preemption of the newest; who comes in is left to `room_for`, who goes to `victim`."""

    def room_for(self, seq: Sequence) -> bool:
        """Whether a waiting sequence may come in. Here: when its prompt fits now."""
        return self.block_manager.num_new_blocks(seq, len(seq)) <= self.block_manager.num_free_blocks

    def victim(self, candidates: list[Sequence]) -> Sequence:
        """Who gives way, of those that may, oldest first. Here: the newest."""
        return candidates[-1]

    def plan(self, batch: ScheduledBatch) -> None:
        budget = self.max_num_batched_tokens
        for seq in sorted(self.running, key=lambda seq: seq.num_uncomputed_tokens > 1):
            if seq in self.running:
                budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))
        while self.waiting and budget and len(self.running) < self.max_num_seqs and not batch.preempted:
            seq = self.waiting[0]
            if not self.room_for(seq):
                break
            self.admit(batch, seq)
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))

    def give(self, batch: ScheduledBatch, seq: Sequence, num_tokens: int) -> int:
        while num_tokens and not super().give(batch, seq, num_tokens):
            planned = {item.seq.seq_id for item in batch.items}
            candidates = [s for s in self.running if s.seq_id not in planned]
            victim = self.victim(candidates) if candidates else seq
            self.running.remove(victim)
            self.block_manager.free(victim)
            self.waiting.insert(0, victim)
            note_preemption(batch, victim)
            if victim is seq:
                return 0
        return num_tokens


@check("can it ever fit?")
def check_can_ever_fit(can_ever_fit):
    """can_ever_fit(num_prompt, max_tokens, max_model_len, num_blocks, block_size) -> True or False."""
    cases = 0
    for num_blocks, size, max_model_len in ((4, 4, 100), (4, 4, 12), (3, 1, 10), (2, 16, 4096)):
        manager = BlockManager(num_blocks, size)
        scheduler = Scheduler(manager, max_model_len=max_model_len)
        for num_prompt in range(1, min(max_model_len, 40)):
            for max_tokens in (1, 2, 5, 17, 1000):
                try:
                    scheduler.validate(num_prompt, max_tokens)
                    right = True
                except ValueError:
                    right = False
                got = can_ever_fit(num_prompt, max_tokens, max_model_len, num_blocks, size)
                cases += 1
                hint = (f"prompt {num_prompt}, max_tokens {max_tokens}, max_model_len {max_model_len}, {num_blocks} blocks "
                        f"of {size}: {right}, not {got}.")
                longest = min(num_prompt + max_tokens, max_model_len)
                if right and longest == num_blocks * size + 1:
                    hint += " The token drawn last is never computed and needs no slot."
                elif right and num_prompt + max_tokens > num_blocks * size + 1:
                    hint += " It ends at max_model_len, long before max_tokens."
                elif not right:
                    hint += f" It may grow to {longest} tokens, and there are {num_blocks * size} slots."
                require(got == right, hint)
    return f"{cases} requests"


def _evening(scheduler_cls, seed: int, num_blocks: int) -> Simulation:
    return _fill(Simulation(num_blocks=num_blocks, block_size=4, max_num_batched_tokens=32, max_num_seqs=12,
                            enable_prefix_caching=False, scheduler_cls=scheduler_cls, seconds=step_seconds), seed)


def _to_the_end(simulation: Simulation, where: str) -> Trace:
    while simulation.has_unfinished:
        require(len(simulation.trace) < 3000, f"{where}: 3,000 steps and no end. Sequences throw each other out for ever.")
        try:
            simulation.step()
            simulation.scheduler.check_integrity()
        except NotImplementedError:
            raise
        except RuntimeError as error:
            waiting, running = len(simulation.scheduler.waiting), len(simulation.scheduler.running)
            require(False, f"{where}, step {len(simulation.trace)}: {waiting} wait, {running} run, and the engine cannot go on "
                           f"({type(error).__name__}).")
    return simulation.trace


@check("a watermark of your own")
def check_admission(MyAdmission):
    """MyAdmission(Admission) with room_for(seq) -> bool: a quarter of the preemptions, nine tenths of the throughput."""
    mine = usual = engines = 0
    rates, gaps = [], []
    for seed in range(4):
        for num_blocks in (20, 28):
            trace = _to_the_end(_evening(MyAdmission, seed, num_blocks), f"evening {seed} with {num_blocks} blocks")
            other = _evening(Admission, seed, num_blocks).run()
            mine, usual = mine + preemptions(trace), usual + preemptions(other)
            engines += preemptions(_evening(Scheduler, seed, num_blocks).run())
            rates.append(measure(trace)[0] / measure(other)[0])
            gaps.append(measure(trace)[2] / measure(other)[2])
    rate = sum(rates) / len(rates)
    require(rate >= 0.9, f"eight evenings: on average {rate:.0%} of the throughput of letting in whatever fits; 90% is wanted. "
                         "You keep too much in reserve.")
    if mine == engines:
        hint = (f"That is what the engine's own reserve has, one block for each running sequence: it prefers an early first "
                f"token. At most {usual // 4} are wanted here, so keep more for those who run.")
    else:
        hint = f"At most {usual // 4} are wanted. What will those who run need in the next steps, and not only in the next one?"
    require(4 * mine <= usual, f"eight evenings: {mine} preemptions, letting in whatever fits has {usual}. {hint}")
    return (f"eight evenings: {mine} preemptions against {usual} (the engine's own reserve has {engines}), {rate:.0%} of the "
            f"throughput; the longest gap is {sum(gaps) / len(gaps):.0%} as long")


@check("the best victim")
def check_choose_victim(choose_victim):
    """choose_victim(candidates) -> one of them; fewer tokens computed again than newest first, and no endless evening."""
    class Yours(Admission):
        def victim(self, candidates):
            chosen = choose_victim(list(candidates))
            require(any(chosen is seq for seq in candidates), f"{chosen!r} is not one of the {len(candidates)} candidates.")
            return chosen

    mine = usual = 0
    for seed in range(6):
        for num_blocks in (17, 20, 24):
            mine += recomputed(_to_the_end(_evening(Yours, seed, num_blocks), f"evening {seed} with {num_blocks} blocks"))
            usual += recomputed(_evening(Admission, seed, num_blocks).run())
    hint = ("The same decisions, then; what does a victim cost, and who costs less?" if mine == usual else
            "You save blocks and pay in tokens. What must be computed again when a sequence comes back?")
    require(mine < usual, f"18 evenings: {mine:,} tokens computed again, newest first needs {usual:,}. {hint}")
    return (f"18 evenings, all came to their end: {mine:,} tokens computed again, newest first needs {usual:,}, "
            f"so yours saves {1 - mine / usual:.1%}")


def serve_with(scheduler_cls, prompts) -> str:
    """Serve `prompts` in a cache that is too small, checking after each step; each text must be what it is alone."""
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    settings = dict(kvcache_block_size=16, num_kvcache_blocks=11, enable_prefix_caching=False)
    with LLM(**settings) as llm:
        alone = [llm.generate([prompt], params, use_tqdm=False)[0].token_ids for prompt in prompts]
    with LLM(**settings, max_num_batched_tokens=64, scheduler_cls=scheduler_cls) as llm:
        seqs = [llm.engine.add_request(prompt, params) for prompt in prompts]
        while llm.engine.has_unfinished:
            llm.engine.step()
            llm.engine.check_integrity()
    if [seq.output_token_ids for seq in seqs] != alone:
        raise RuntimeError("a text differs from what the request generates alone")
    return f"{len(prompts)} requests, {sum(s.num_preemptions for s in seqs)} preemptions: each text is what it is alone"


def check_same_as_scheduler(scheduler_cls, evenings: int = 10) -> str:
    """The chapter's scheduler beside the package's, on evenings with preemptions. Raises when they part."""
    steps = preemptions = 0
    for seed in range(evenings):
        for num_blocks in (17, 20, 28):
            runs = [_evening(cls, seed, num_blocks).run() for cls in (scheduler_cls, Scheduler)]
            plans = [[({s["seq_id"]: s["num_tokens"] for s in r.scheduled}, r.preempted) for r in run] for run in runs]
            for step, (mine, theirs) in enumerate(zip(*plans, strict=True)):
                if mine != theirs:
                    raise ValueError(f"evening {seed}, {num_blocks} blocks, step {step}: {mine} here, {theirs} in Scheduler")
            steps += len(runs[0])
            preemptions += sum(len(r.preempted) for r in runs[0])
    return f"{3 * evenings} evenings, {steps} steps, {preemptions} preemptions: the same decisions"
