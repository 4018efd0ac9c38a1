"""The real scheduler and block manager at work, with a model that makes its tokens up. Imports no torch.

Chapters 02 to 05 watch scheduling and memory, where what a token says does not matter and a step should cost
microseconds. Everything else is the engine's own: the same classes, the same decisions, the same trace.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check

WORDS = ("the a and of to in it is was on that with she he for as they at his her but had you from not by one all were when we "
         "there so out up said what then no into them some could little time like very now down over after two did more "
         "went came here again who see way our good will made come about back before right too old day away").split()
FIRST_NUMBERED = 1_000_000  # ids from here on name tokens without a text
MAX_STEPS = 10_000


def made_up_seconds(batch: ScheduledBatch) -> float:
    """How long a step is said to take: 10 ms for reading the weights and 1 ms per token. No machine was measured."""
    return 0.010 + 0.001 * batch.num_tokens


class Simulation:
    """Requests served step by step by the real Scheduler and BlockManager; a `Trace` records every step.

    Owns both of them, the journal of what was asked and when, and the made-up tokens (each a hash of all before it, so the
    same requests give the same run). It never computes anything else, and it has no clock: `seconds` says how long a step
    is taken to be. Because of the journal a setting can be changed afterwards: `set` runs everything again.

        simulation = Simulation(num_blocks=16, block_size=4, max_num_batched_tokens=16)
        simulation.add("You are a helpful assistant . Tell me about cats", max_tokens=12)
        trace = simulation.run()

    scheduler_cls, block_manager_cls: your own classes in place of the engine's, as for `LLM`.
    """

    kind = "simulation"

    def __init__(self, *, num_blocks: int = 32, block_size: int = 4, max_num_batched_tokens: int = 16, max_num_seqs: int = 16,
                 max_model_len: int = 4096, enable_prefix_caching: bool = True,
                 scheduler_cls: Callable[..., Scheduler] = Scheduler,
                 block_manager_cls: Callable[..., BlockManager] = BlockManager,
                 seconds: Callable[[ScheduledBatch], float] = made_up_seconds):
        self._settings = {"num_blocks": num_blocks, "max_num_batched_tokens": max_num_batched_tokens,
                          "max_num_seqs": max_num_seqs}
        # Where a slider ends. Fixed: an end that moved with the value would run away from whoever drags it there.
        self._highest = {name: max(64, 2 * value) for name, value in self._settings.items()}
        self._fixed = (block_size, enable_prefix_caching, max_model_len, scheduler_cls, block_manager_cls, seconds)
        self._journal: list[tuple[int, str, tuple[Any, ...]]] = []  # (before which step, "add" or "abort", arguments)
        self._ids = {word: i for i, word in enumerate(WORDS)}
        self._words = dict(enumerate(WORDS))
        self._num_requests = 0
        self._restart()

    @classmethod
    def of(cls, scheduler: Scheduler) -> "Simulation":
        """Drive a scheduler that has not run yet, together with whatever waits in it."""
        check(not scheduler.running, "running sequences", len(scheduler.running), "none yet",
              "hand over a scheduler before its first step")
        manager = scheduler.block_manager
        simulation = cls(
            num_blocks=manager.num_blocks, block_size=manager.block_size, enable_prefix_caching=manager.enable_prefix_caching,
            max_num_batched_tokens=scheduler.max_num_batched_tokens, max_num_seqs=scheduler.max_num_seqs,
            max_model_len=scheduler.max_model_len, scheduler_cls=type(scheduler), block_manager_cls=type(manager))
        simulation.scheduler = scheduler
        for seq in scheduler.waiting:
            simulation._journal.append((0, "add", (seq.seq_id, seq.token_ids[:], seq.sampling_params)))
            simulation._take_note(seq)
            simulation._num_requests = max(simulation._num_requests, seq.seq_id + 1)
        simulation._done = len(simulation._journal)
        return simulation

    def __repr__(self) -> str:
        return f"Simulation({self.trace!r}, {self.scheduler!r})"

    # ---- driving

    def add(self, prompt: str | int | list[int], max_tokens: int = 8, *, at: int | None = None) -> int:
        """Queue a request; returns its id.

        prompt: a text, of which every word is a token; token ids; or a number of tokens that no other prompt shares.
        at: the step before which it arrives; None is now. When nothing is left to run, later arrivals come at once.
        Raises ValueError for a request that could never be served.
        """
        seq_id = self._num_requests
        tokens = self._tokens(prompt, seq_id)
        self.scheduler.validate(len(tokens), max_tokens)
        self._num_requests += 1
        self._note(at, "add", (seq_id, tokens, SamplingParams(max_tokens=max_tokens, ignore_eos=True)))
        return seq_id

    def abort(self, seq_id: int, *, at: int | None = None) -> None:
        """End a request before step `at` (None: now). Nothing happens when it has ended by then."""
        self._note(at, "abort", (seq_id,))

    def step(self) -> StepRecord | None:
        """One step of the real thing; None when nothing was left to run, or all it did was preempt.

        Raises RuntimeError when requests wait and the scheduler, perhaps one of your own, runs none of them.
        """
        self._arrive()
        batch = self.scheduler.schedule()
        if not batch.items:
            if self.scheduler.has_unfinished and not batch.preempted:
                raise RuntimeError(f"{self.scheduler!r} scheduled nothing although sequences wait.")
            return None
        tokens = [self._next_token(item.seq) for item in batch.items if item.samples]
        finished = self.scheduler.update(batch, tokens)
        duration = self._fixed[-1](batch)
        record = StepRecord.of_step(self.scheduler, len(self.trace), self._now, duration, batch, tokens, finished)
        self._now += duration
        self.trace.append(record)
        self.eviction_orders[record.step] = eviction_order(self.scheduler)
        return record

    def run(self, num_steps: int | None = None) -> Trace:
        """Step until everything is served, or `num_steps` times; returns the trace, which goes on growing."""
        end = len(self.trace) + (MAX_STEPS if num_steps is None else num_steps)
        for _ in range(MAX_STEPS):
            if len(self.trace) >= end or not self.has_unfinished:
                break
            self.step()
        return self.trace

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished or self._done < len(self._journal)

    # ---- changing one's mind

    @property
    def settings(self) -> dict[str, dict[str, int]]:
        """What can be changed while it runs: {name: {"value", "low", "high"}}."""
        longest = max((len(tokens) + params.max_tokens - 1 for _, what, (_, tokens, params) in self._adds()), default=1)
        blocks = -(-longest // self._fixed[0])
        lowest = {"num_blocks": blocks, "max_num_batched_tokens": 1}
        return {name: {"value": self._settings[name], "low": low, "high": max(self._highest[name], self._settings[name])}
                for name, low in lowest.items()}

    def set(self, **settings: int) -> Trace:
        """Run again with num_blocks, max_num_batched_tokens or max_num_seqs changed.

        A run that had ended is run to its end again, any other for as many steps. Raises ValueError, and changes nothing,
        when a request would no longer fit.
        """
        for name in settings:
            check(name in self._settings, "setting", name, f"one of {', '.join(self._settings)}", "make a new Simulation")
        before, num_steps = dict(self.__dict__), len(self.trace) if self.has_unfinished else None
        self._settings = self._settings | settings
        try:
            self._restart()
            return self.run(num_steps)
        except ValueError:
            self.__dict__.update(before)
            raise

    def rewind(self, num_steps: int) -> Trace:
        """Go back to where `num_steps` steps were taken, and forget what was asked for after that."""
        self._journal = [entry for entry in self._journal if entry[0] <= num_steps]
        self._restart()
        return self.run(num_steps)

    # ---- what the tokens say

    def decode(self, token_id: int) -> str:
        """The word of a token; tokens that were only counted are called by their number."""
        return self._words.get(token_id, f"{token_id % 1000}")

    def _tokens(self, prompt: str | int | list[int], seq_id: int) -> list[int]:
        if isinstance(prompt, str):
            for word in prompt.split():
                if word not in self._ids:
                    self._words[len(self._ids)] = word
                    self._ids[word] = len(self._ids)
            return [self._ids[word] for word in prompt.split()]
        if isinstance(prompt, int):
            return [FIRST_NUMBERED * (seq_id + 1) + i for i in range(prompt)]
        return list(prompt)

    @staticmethod
    def _next_token(seq: Sequence) -> int:
        digest = blake2b(repr(seq.token_ids).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % len(WORDS)

    # ---- the journal

    def _adds(self) -> Iterator[tuple[int, str, tuple[Any, ...]]]:
        return (entry for entry in self._journal if entry[1] == "add")

    def _note(self, at: int | None, what: str, arguments: tuple[Any, ...]) -> None:
        at = len(self.trace) if at is None else max(at, len(self.trace))
        self._journal.append((at, what, arguments))
        self._journal[self._done:] = sorted(self._journal[self._done:], key=lambda entry: entry[0])
        if at == len(self.trace):
            self._arrive()

    def _arrive(self) -> None:
        """Let happen what the journal has for this moment."""
        while self._done < len(self._journal):
            at, what, arguments = self._journal[self._done]
            if at > len(self.trace) and self.scheduler.has_unfinished:
                break
            self._done += 1
            if what == "abort":
                if ended := self.scheduler.abort(*arguments):
                    self.trace.ended(ended)
            else:
                seq = Sequence(*arguments)
                self.scheduler.add(seq)
                self._take_note(seq)

    def _take_note(self, seq: Sequence) -> None:
        seq.arrived_at = self._now
        self.prompts[seq.seq_id] = seq.prompt_token_ids
        self.trace.joined(seq)

    def _restart(self) -> None:
        block_size, caching, max_model_len, scheduler_cls, block_manager_cls, _ = self._fixed
        values = self._settings
        self.scheduler = scheduler_cls(
            block_manager_cls(values["num_blocks"], block_size, caching), max_num_seqs=values["max_num_seqs"],
            max_num_batched_tokens=values["max_num_batched_tokens"], max_model_len=max_model_len)
        self.trace = Trace({"block_size": block_size, "num_blocks": values["num_blocks"], "model": "simulation",
                            "token_budget": values["max_num_batched_tokens"], "max_num_seqs": values["max_num_seqs"]})
        self.eviction_orders: dict[int, list[int]] = {}  # by step
        self.prompts: dict[int, list[int]] = {}
        self._done = 0  # entries of the journal that have happened
        self._now = 0.0
        self._arrive()


def eviction_order(scheduler: Scheduler) -> list[int]:
    """Unreferenced blocks in the order of reuse; empty for a block manager of your own that does not say."""
    return getattr(scheduler.block_manager, "eviction_order", list)()
