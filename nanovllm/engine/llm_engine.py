"""The loop: schedule, launch, collect, update."""

import itertools
import time
from collections.abc import Callable

from nanovllm.config import Config
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.scheduler import ScheduledBatch, Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.trace import StepRecord, Trace
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check


class LLMEngine:
    """Runs requests step by step.

    Owns one scheduler, one block manager and one model runner, and gives every request its id. It knows token ids only:
    text is `LLM`'s business. `scheduler_cls` and `block_manager_cls` take your own classes in place of ours.
    """

    def __init__(self, config: Config, scheduler_cls: Callable[..., Scheduler] = Scheduler,
                 block_manager_cls: Callable[..., BlockManager] = BlockManager):
        self.config = config
        self.model_runner = ModelRunner(config)
        self.block_manager = block_manager_cls(self.model_runner.num_blocks, config.kvcache_block_size,
                                               config.enable_prefix_caching)
        self.scheduler = scheduler_cls(
            self.block_manager, max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len, eos_token_ids=config.eos_token_ids)
        self.num_steps = 0
        self._ids = itertools.count()
        self._traces: list[tuple[Trace, float]] = []  # who listens, and when they began

    def __repr__(self) -> str:
        return f"LLMEngine(step {self.num_steps}, {self.scheduler!r}, {self.block_manager!r})"

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    def validate(self, prompt_token_ids: list[int], params: SamplingParams) -> None:
        """Raise ValueError unless the request can be served to its end. Queues nothing."""
        vocab_size = self.config.hf_config.vocab_size
        self.scheduler.validate(len(prompt_token_ids), params.max_tokens)
        for token in (*prompt_token_ids, *params.stop_token_ids):
            check(isinstance(token, int) and 0 <= token < vocab_size, "token id", token,
                  f"a whole number in [0, {vocab_size}), the model's vocabulary", "encode the text with this model's tokenizer")

    def add_request(self, prompt_token_ids: list[int], params: SamplingParams | None = None) -> Sequence:
        """Queue a request and return its sequence, to be watched while `step` fills it. Raises as `validate` does."""
        params = params or SamplingParams()
        self.validate(prompt_token_ids, params)
        seq = Sequence(next(self._ids), prompt_token_ids, params)
        self.scheduler.add(seq)
        for trace, _ in self._traces:
            trace.meta["prompts"][seq.seq_id] = seq.num_prompt_tokens
        return seq

    def abort(self, seq_id: int) -> Sequence | None:
        """End a request now and free its blocks; None when it has already ended."""
        return self.scheduler.abort(seq_id)

    def step(self) -> list[Sequence]:
        """Advance every scheduled sequence; returns those that finished.

        An exception, an interrupt too, leaves the step undone: its sequences keep their place and can run again or be
        aborted.
        """
        started = time.perf_counter()
        batch = self.scheduler.schedule()
        if not batch.items:
            if self.has_unfinished and not batch.preempted:
                raise RuntimeError(f"{self.scheduler!r} scheduled nothing although sequences wait; "
                                   "this is a bug in the scheduler.")
            return []
        launched = self.model_runner.launch(batch)
        token_ids = self.model_runner.collect(launched)
        finished = self.scheduler.update(batch, token_ids)
        self._record(started, batch, token_ids, finished)
        self.num_steps += 1
        return finished

    def attach(self, trace: Trace) -> None:
        """Have every step from now on appended to `trace`, until `detach`."""
        trace.meta |= {"block_size": self.block_manager.block_size, "num_blocks": self.block_manager.num_blocks,
                       "token_budget": self.config.max_num_batched_tokens, "max_num_seqs": self.config.max_num_seqs,
                       "model": self.config.model.name,
                       "prompts": {s.seq_id: s.num_prompt_tokens for s in (*self.scheduler.running, *self.scheduler.waiting)}}
        self._traces.append((trace, time.perf_counter()))

    def detach(self, trace: Trace) -> None:
        self._traces = [entry for entry in self._traces if entry[0] is not trace]

    def check_integrity(self) -> None:
        """Raise RuntimeError unless the engine's books balance."""
        self.scheduler.check_integrity()

    def _record(self, started: float, batch: ScheduledBatch, token_ids: list[int], finished: list[Sequence]) -> None:
        for trace, origin in self._traces:
            trace.records.append(StepRecord.of(self.num_steps, started - origin, time.perf_counter() - started,
                                               self.scheduler, batch, token_ids, finished))
