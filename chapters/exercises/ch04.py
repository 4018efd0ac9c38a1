"""Chapter 04: sharing out a budget, a scheduler of one's own, and short ones first without starving anybody."""

import random

from nanovllm import LLM, SamplingParams
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.fleet.simulation import Simulation
from nanovllm.tracing.trace import Trace

from .simulated_runs import measure as measure
from .simulated_runs import report as report
from .simulated_runs import serve_by_clock as serve_by_clock
from .simulated_runs import table as table
from .verdict import check, require


class Workbench(Scheduler):
    """The finished scheduler with the decision left out: `plan(batch)` is yours.

    Owns what a Scheduler owns: `waiting` and `running`, `max_num_batched_tokens`, `max_num_seqs`. It neither preempts nor
    keeps a reserve of blocks; chapter 05 does.
    """

    def plan(self, batch: ScheduledBatch) -> None:
        raise NotImplementedError

    def admit(self, batch: ScheduledBatch, seq: Sequence) -> None:
        """Take `seq` from the waiting to the running ones, with whatever of its prompt is cached."""
        self.waiting.remove(seq)
        self.block_manager.allocate(seq, self.block_manager.find_cached_prefix(seq))
        seq.status = SequenceStatus.RUNNING
        self.running.append(seq)
        batch.admitted.append(seq)

    def give(self, batch: ScheduledBatch, seq: Sequence, num_tokens: int) -> int:
        """Let a running sequence compute its next tokens in this step; returns how many, 0 when no blocks are left."""
        upto = seq.num_computed_tokens + num_tokens
        if num_tokens < 1 or self.block_manager.num_new_blocks(seq, upto) > self.block_manager.num_free_blocks:
            return 0
        self.block_manager.append(seq, upto)
        batch.items.append(ScheduledSequence(seq, seq.num_computed_tokens, num_tokens, "planned"))
        return num_tokens

    def waited(self, seq: Sequence) -> int:
        """Steps since `seq` was first seen waiting."""
        return self.num_scheduled_steps - self._since.setdefault(seq.seq_id, self.num_scheduled_steps)

    def schedule(self) -> ScheduledBatch:
        self._since = getattr(self, "_since", {})
        self.num_scheduled_steps += 1
        for seq in self.waiting:
            self.waited(seq)
        batch = ScheduledBatch()
        self.plan(batch)
        batch.items.sort(key=lambda item: item.num_tokens > 1)  # the attention kernels take single tokens first
        return batch


def _seconds(batch: ScheduledBatch) -> float:
    return 0.010 + 0.0002 * batch.num_tokens


class _Static(Workbench):
    def plan(self, batch):
        budget = self.max_num_batched_tokens
        if not self.running:
            for seq in list(self.waiting)[:self.max_num_seqs]:
                self.admit(batch, seq)
        for seq in self.running:
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))


@check("share out a budget")
def check_share_out(share_out):
    """share_out(uncomputed, budget) -> tokens for each: single tokens first, then the rest in order."""
    draw = random.Random(0)
    cases = [([1, 1, 1], 2), ([30, 1, 1], 8), ([5, 7], 8), ([40], 16), ([], 4), ([1], 1)]
    cases += [([draw.choice([1, 1, 1, draw.randrange(2, 40)]) for _ in range(draw.randrange(1, 8))], draw.randrange(1, 40))
              for _ in range(100)]
    for uncomputed, budget in cases:
        right, left = [0] * len(uncomputed), budget
        for i in sorted(range(len(uncomputed)), key=lambda i: uncomputed[i] > 1):
            right[i] = min(uncomputed[i], left)
            left -= right[i]
        got = list(share_out(list(uncomputed), budget))
        hint = f"uncomputed {uncomputed}, budget {budget}: {right}, not {got}."
        if sum(got) > budget:
            hint += f" That is {sum(got)} tokens, more than the budget."
        elif any(u == 1 and g == 0 for u, g in zip(uncomputed, got)) and any(u > 1 and g for u, g in zip(uncomputed, got)):
            hint += " A prompt was served before somebody who needed a single token."
        elif sum(got) < sum(right):
            hint += " Some of the budget is left over although there is work; may a prompt be cut?"
        require(got == right, hint)
    return f"{len(cases)} steps"


def _busy_day(seed: int, count: int = 40):
    draw = random.Random(seed)
    at = 0
    for _ in range(count):
        at += int(draw.expovariate(0.4))
        yield at, draw.choice([4, 8, 12, 20, 90]), draw.choice([6, 10, 20, 50])


def _simulate(scheduler_cls, seed: int) -> Simulation:
    simulation = Simulation(num_blocks=600, block_size=4, max_num_batched_tokens=48, max_num_seqs=8,
                            scheduler_cls=scheduler_cls, seconds=_seconds)
    for at, num_prompt, num_output in _busy_day(seed):
        simulation.add(num_prompt, num_output, at=at)
    return simulation


def _watch(simulation: Simulation, budget: int, places: int) -> Trace:
    """Run it, holding every step to the rules."""
    while simulation.has_unfinished:
        before = {s.seq_id for s in simulation.scheduler.running}
        decoding = {s.seq_id for s in simulation.scheduler.running if s.num_uncomputed_tokens == 1}
        step = len(simulation.trace)
        try:
            record = simulation.step()
        except NotImplementedError:
            raise
        except RuntimeError:
            require(False, f"step {step}: requests wait, places and budget are free, and your plan runs nobody.")
        if record is None:
            continue
        try:
            simulation.scheduler.check_integrity()
        except RuntimeError as error:
            require(False, f"step {step}: {error}.")
        used = sum(s["num_tokens"] for s in record.scheduled)
        require(used <= budget, f"step {step} computes {used} tokens, and the budget is {budget}. Cut the last prompt.")
        busy = {*before, *(s["seq_id"] for s in record.scheduled)}
        require(len(busy) <= places, f"step {step}: {len(busy)} sequences run at once, {places} are allowed.")
        ran = [s["seq_id"] for s in record.scheduled]
        require(len(ran) == len(set(ran)), f"step {step}: a sequence is in the batch twice: {ran}.")
        stood = decoding - set(ran) if used < budget else set()
        require(not stood, f"step {step}: sequence {min(stood, default=0)} is decoding and got no token, with {budget - used} "
                           "tokens of budget to spare. Nobody who is being answered may stand still.")
        require(step < 2000, f"{step} steps and no end: {simulation.scheduler!r}")
    return simulation.trace


GAP = 0.015  # seconds between two tokens of an answer, at most


@check("a scheduler of your own")
def check_scheduler(MyScheduler):
    """MyScheduler(Workbench) with plan(batch): within the limits, gaps of 15 ms at most, 1.5 times static batching."""
    ratios = []
    for seed in range(3):
        yours = measure(_watch(_simulate(MyScheduler, seed), 48, 8))
        static = measure(_simulate(_Static, seed).run())
        ratios.append(yours[0] / static[0])
        require(yours[2] <= GAP + 1e-6,
                f"day {seed}: somebody waits {yours[2] * 1e3:.1f} ms for the next token, {GAP * 1e3:.0f} are allowed. A step "
                "takes 10 ms and 0.2 per token: how many may it carry while one is decoding?")
        require(yours[0] >= 1.5 * static[0], f"day {seed}: {yours[0]:.0f} tokens/s, static batching makes {static[0]:.0f}; "
                                             "1.5 times that is wanted. Do you fill a place as soon as it is free?")
    return (f"three busy days, {min(ratios):.1f} to {max(ratios):.1f} times the tokens of static batching, "
            f"no gap over {GAP * 1e3:.0f} ms")


class _FirstComeFirstServed(Workbench):
    def plan(self, batch):
        budget = self.max_num_batched_tokens
        for seq in sorted(self.running, key=lambda seq: seq.num_uncomputed_tokens > 1):
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))
        while self.waiting and budget and len(self.running) < self.max_num_seqs:
            seq = self.waiting[0]
            self.admit(batch, seq)
            budget -= self.give(batch, seq, min(seq.num_uncomputed_tokens, budget))


def _at_the_till(scheduler_cls, arrivals) -> Simulation:
    """A simulation in which long prompts hold up short ones: a small budget, short answers."""
    simulation = Simulation(num_blocks=900, block_size=4, max_num_batched_tokens=16, max_num_seqs=8,
                            scheduler_cls=scheduler_cls, seconds=_seconds)
    for at, num_prompt, num_output in arrivals:
        simulation.add(num_prompt, num_output, at=at)
    return simulation


def _mixed(seed: int):
    draw = random.Random(seed)
    at = 0
    for _ in range(80):
        at += int(draw.expovariate(0.5))
        yield at, draw.choice([5, 8, 10, 12, 60]), draw.choice([4, 6, 8])


def _rush(count: int = 120):
    """Short prompts without a pause, a little more than can be served, and request 8 with a long one."""
    draw = random.Random(5)
    at = 0
    for i in range(count):
        if i == 8:
            yield at, 60, 4
        yield at, draw.choice([6, 8, 10, 12]), draw.choice([4, 6, 8])
        at += i % 4 != 0


@check("short ones first, and nobody starves")
def check_short_first(ShortFirst):
    """ShortFirst(Workbench): mean time to first token a fifth below first come first served, no wait above 40 steps."""
    trace = _watch(_at_the_till(ShortFirst, _rush()), 16, 8)
    waits: dict[int, int] = {}
    for r in trace:
        for seq_id in r.waiting:
            waits[seq_id] = waits.get(seq_id, 0) + 1
    worst = max(waits, key=waits.get, default=0)
    longest = waits.get(worst, 0)
    require(longest <= 40, f"short prompts keep coming, and sequence {worst}, of {trace.meta['prompts'][worst]} tokens, waited "
                           f"{longest} steps to be admitted; 40 are allowed. Let waiting count for something.")
    gains = []
    for seed in range(3):
        first = measure(_watch(_at_the_till(ShortFirst, _mixed(seed)), 16, 8))[1]
        usual = measure(_at_the_till(_FirstComeFirstServed, _mixed(seed)).run())[1]
        gains.append(1 - first / usual)
        require(first <= 0.8 * usual, f"day {seed}: the first token comes after {first * 1e3:.0f} ms on average; first come, "
                                      f"first served takes {usual * 1e3:.0f}, and at most {0.8 * usual * 1e3:.0f} is wanted.")
    return f"first tokens {min(gains):.0%} to {max(gains):.0%} sooner on three days; in a rush nobody waits over {longest}"


def serve_with(scheduler_cls, prompts) -> str:
    """Serve `prompts` with the reader's scheduler, checking after each step; each text must be what it is alone."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(kvcache_block_size=8, num_kvcache_blocks=64) as llm:
        alone = [llm.generate([prompt], params, use_tqdm=False)[0].token_ids for prompt in prompts]
    with LLM(kvcache_block_size=8, num_kvcache_blocks=64, max_num_batched_tokens=40, max_num_seqs=4,
             scheduler_cls=scheduler_cls) as llm:
        seqs = [llm.engine.add_request(prompt, params) for prompt in prompts]
        steps = 0
        while llm.engine.has_unfinished:
            llm.engine.step()
            llm.engine.check_integrity()
            steps += 1
    if [seq.output_token_ids for seq in seqs] != alone:
        raise RuntimeError("a text differs from what the request generates alone")
    return f"{len(prompts)} requests in {steps} steps with your scheduler: each text is what it is alone"


def check_same_as_scheduler(scheduler_cls, days: int = 20) -> str:
    """The chapter's scheduler beside the package's, step by step. Raises when they part."""
    steps = 0
    for seed in range(days):
        runs = []
        for cls in (scheduler_cls, Scheduler):
            simulation = Simulation(num_blocks=4000, block_size=4, max_num_batched_tokens=32, max_num_seqs=8, scheduler_cls=cls,
                                    enable_prefix_caching=False)
            for at, num_prompt, num_output in _busy_day(seed, 20):
                simulation.add(num_prompt, num_output, at=at)
            runs.append([{s["seq_id"]: s["num_tokens"] for s in r.scheduled} for r in simulation.run()])
        for step, (mine, theirs) in enumerate(zip(*runs, strict=True)):
            if mine != theirs:
                raise ValueError(f"day {seed}, step {step}: {mine} here, {theirs} in Scheduler")
        steps += len(runs[0])
    return f"{days} busy days, {steps} steps, the same sequences and the same number of tokens of each"
