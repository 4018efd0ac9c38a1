"""The loop: schedule, launch, collect, update."""

import time
from collections import deque
from collections.abc import Callable

from nanovllm.config import Config
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.drafts_ahead import make_speculation
from nanovllm.engine.drafts_control import Speculation
from nanovllm.engine.drafts_forced import ForcedTokens
from nanovllm.engine.input_processor import InputProcessor
from nanovllm.engine.listener import Listener, Step
from nanovllm.engine.runner import Runner
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.step_in_flight import StepInFlight
from nanovllm.engine.token_matcher import TokenMatcher
from nanovllm.engine.turn import Turn, in_turn
from nanovllm.errors import RequestFailed
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check
from nanovllm.utils.interrupts import uninterrupted
from nanovllm.utils.numbers import as_token_ids, plain


class LLMEngine:
    """Runs requests step by step.

    Owns one scheduler, one block manager and the runner it is given, and gives every request its id. It knows token ids
    only: text is `LLM`'s business. `scheduler_cls` and `block_manager_cls` take your own classes in place of ours.

    With `async_scheduling` it looks ahead: step n + 1 is scheduled and launched while step n runs, but for draws by masks that
    need a token of step n. A scheduler with a `schedule` or `update` of its own is given one step at a time, and a drafter only
    if it says `schedules_drafts = True`. Any thread may call it: one is inside at a time, and a step advances all (see `Turn`).

    drafter: guesses tokens for sequences that decode, so that one step may draw several (see `drafts`). While some sequence
        drafts, there is one step at a time, unless the device drafts for all (see `drafts_ahead`).
    num_steps, num_ended, num_failed_steps: steps taken, requests that have ended, and steps that were rolled back.
    """

    def __init__(self, config: Config, runner: Runner, scheduler_cls: Callable[..., Scheduler] = Scheduler,
                 block_manager_cls: Callable[..., BlockManager] = BlockManager, drafter: Drafter | None = None):
        self.config = config
        self.model_runner = runner
        self.block_manager = block_manager_cls(self.model_runner.num_blocks, config.kvcache_block_size,
                                               config.enable_prefix_caching)
        self.scheduler = scheduler_cls(
            self.block_manager, max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len, eos_token_ids=config.eos_token_ids)
        self.input_processor = InputProcessor(config, self.scheduler)
        # A scheduler with a `schedule` or `update` of its own may not know of pending tokens.
        overridden = any(getattr(type(self.scheduler), name, None) is not getattr(Scheduler, name)
                         for name in ("schedule", "update"))
        self._looks_ahead = config.async_scheduling and not overridden
        self.speculation: Speculation | None = None
        if drafter is not None:
            check(not overridden or getattr(self.scheduler, "schedules_drafts", False), "scheduler_cls",
                  type(self.scheduler).__name__, "the engine's own with a drafter, or one with schedules_drafts = True",
                  "leave speculative_config and drafter out, or give sequences their num_new_tokens and say so on your class")
            self.speculation = make_speculation(drafter, self.scheduler, config, self._looks_ahead, runner)
        self._forced = None if overridden or self._looks_ahead else ForcedTokens(self.scheduler)
        self._in_flight: deque[StepInFlight] = deque()
        self.turn = Turn()
        self.is_closed = False
        self.num_steps = self.num_ended = self.num_failed_steps = 0
        self._listeners: list[Listener] = []

    def __repr__(self) -> str:
        return f"LLMEngine(step {self.num_steps}, {self.scheduler!r}, {self.block_manager!r})"

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    @property
    def failure(self) -> str | None:
        """Why it can serve nothing any more: a process that it needs has ended. None while all is well."""
        return self.model_runner.failure

    def validate(self, prompt_token_ids: list[int], params: SamplingParams, priority: int = 0) -> None:
        """Raise InvalidRequest unless the request can be served to its end. Queues nothing."""
        self.input_processor.validate(prompt_token_ids, params, priority)

    def add_request(self, prompt_token_ids: list[int], params: SamplingParams | None = None, priority: int = 0,
                    matcher: TokenMatcher | None = None) -> Sequence:
        """Queue a request and return its sequence, to be watched while `step` fills it. Raises as `validate` does.

        One sequence draws one sample, and knows no text: `n` and `stop` are `nanovllm.serving.request.Request`'s. matcher:
        see `new_sequence`.
        """
        params = params or SamplingParams()
        prompt_token_ids, priority = as_token_ids(prompt_token_ids), plain(priority)
        self.validate(prompt_token_ids, params, priority)
        seq = self.new_sequence(prompt_token_ids, params, priority, matcher)
        self.enqueue(seq)
        return seq

    def new_sequence(self, prompt_token_ids: list[int], params: SamplingParams, priority: int = 0,
                     matcher: TokenMatcher | None = None) -> Sequence:
        """A sequence with an id of its own, not queued yet.

        matcher: at the beginning of the grammar that `params.structured_outputs` stands for (see `serving.grammars`), the
        sequence's own from now on. Raises InvalidRequest when one of the two is there without the other.
        """
        return self.input_processor.sequence(prompt_token_ids, params, priority, matcher)

    def enqueue(self, seq: Sequence) -> None:
        """Queue a sequence that `new_sequence` made; from now on `step` fills it."""
        with self.turn:
            self._check_open()
            self.scheduler.add(seq)
            for listener in self._listeners:
                listener.joined(seq)

    def abort(self, seq_id: int, reason: str = "abort") -> Sequence | None:
        """End a request now and free its blocks; None when it has already ended. reason: see `Scheduler.abort`."""
        return self.turn.between_steps(lambda: self._abort(seq_id, reason))

    def close(self) -> None:
        """Free the weights and the cache, after the step at hand; no other follows. May be called any number of times."""
        self.turn.between_steps(self._close)

    @in_turn
    def step(self, batch: ScheduledBatch | None = None) -> list[Sequence]:
        """Take in the next step's tokens; returns the sequences that they end.

        Where the engine looks ahead, the step after it is scheduled and launched first, so that the device never waits
        for the host: a sequence that then turns out to have ended has cost one row of that step, and nothing else.

        An exception, an interrupt too, rolls all steps in flight back: their sequences keep their blocks and can run
        again or be aborted. Interrupts come between the phases, or while the model runs, but never in the bookkeeping.
        Raises RequestFailed once the engine is closed.

        batch: what to run, from `scheduler.schedule()` or some of its items, while no step is in flight.
        """
        self._check_open()
        try:
            while len(self._in_flight) < (self._depth if batch is None else 1):
                timestamps = [time.perf_counter()]
                with uninterrupted():
                    for step in self._in_flight:
                        self.scheduler.advance(step.batch)
                if (drafts := self._drafts) and batch is None:
                    drafts.propose()
                with uninterrupted():
                    scheduled = self.scheduler.schedule() if batch is None else batch
                timestamps.append(time.perf_counter())
                if not scheduled.items:
                    self._check_progress(scheduled)
                    break
                launched = self.model_runner.launch(scheduled)
                timestamps.append(time.perf_counter())
                self._in_flight.append(StepInFlight(scheduled, launched, timestamps))
            if not self._in_flight:
                return []
            oldest = self._in_flight[0]
            token_ids = self.model_runner.collect(oldest.launched)
            oldest.timestamps.append(time.perf_counter())
            with uninterrupted():
                finished = self.scheduler.update(oldest.batch, token_ids)
                oldest.record_times()
                if drafts := self._drafts:
                    drafts.learn(oldest.batch)
                self._in_flight.popleft()
                self._draw_late()
                oldest.timestamps.append(time.perf_counter())
        except BaseException as error:
            with uninterrupted():
                self._roll_back()
                self.num_failed_steps += 1
            error.add_note(f"in step {self.num_steps} of {self!r}, which was rolled back")
            raise
        if all(item.seq.is_finished for later in self._in_flight for item in later.batch.items):
            self._in_flight.clear()  # its tokens are of no use
        self.num_ended += len(finished)
        ended = Step(self.num_steps, oldest.batch, token_ids, finished, oldest.timestamps)
        for listener in self._listeners:
            listener.stepped(ended)
        self.num_steps += 1
        return finished

    def _draw_late(self) -> None:
        """Have the step in flight draw, if its masks waited for the tokens that have just been taken in.

        The device computes its logits meanwhile. A draw that fails is not this step's affair, whose sequences must be returned:
        the step in flight is rolled back, and the next call launches it again with nothing before it, and raises.
        """
        try:
            for step in self._in_flight:
                if step.batch.masks_wait:
                    self.model_runner.draw(step.launched)
        except Exception:
            self._roll_back()
            self.num_failed_steps += 1

    def _check_open(self) -> None:
        if self.is_closed:
            raise RequestFailed("the engine was closed while it had requests; make a new one")

    def _abort(self, seq_id: int, reason: str) -> Sequence | None:
        seq = self.scheduler.abort(seq_id, reason)
        if seq is not None:
            self.num_ended += 1
            if self.speculation:
                self.speculation.forget(seq_id)
            for listener in self._listeners:
                listener.ended(seq)
        return seq

    def _close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.model_runner.close()
            if self.speculation:
                self.speculation.close()

    @property
    def _depth(self) -> int:
        """Most steps in flight at once."""
        if not self._looks_ahead or any(listener.one_step_at_a_time for listener in self._listeners):
            return 1
        drafts = self._drafts
        return 1 if drafts and drafts.is_wanted else 2

    @property
    def _drafts(self) -> Speculation | ForcedTokens | None:
        """What gives sequences drafts: the drafter's or, without one, those that grammars force."""
        return self.speculation or self._forced

    def _check_progress(self, empty: ScheduledBatch) -> None:
        if not self._in_flight and self.has_unfinished and not empty.preempted:
            raise RuntimeError(f"{self.scheduler!r} scheduled nothing although sequences wait; "
                               "this is a bug in the scheduler.")

    def _roll_back(self) -> None:
        """Forget the steps in flight. What they wrote to the cache will be written again, with the same values."""
        for step in reversed(self._in_flight):
            if step.batch.is_advanced:
                self.scheduler.roll_back(step.batch)
        self._in_flight.clear()
        self.model_runner.reset()

    def attach(self, listener: Listener) -> None:
        """Tell `listener` of every request and step from now on, until `detach`; first, of the requests that are there."""
        with self.turn:
            for seq in (*self.scheduler.running, *self.scheduler.waiting):
                listener.joined(seq)
            self._listeners = [*self._listeners, listener]  # a new list: one of them may be running through the old one

    def detach(self, listener: Listener) -> None:
        with self.turn:
            self._listeners = [other for other in self._listeners if other is not listener]

    def check_integrity(self) -> None:
        """Raise RuntimeError unless queues, block tables and reference counts agree."""
        with self.turn:
            self.scheduler.check_integrity()
