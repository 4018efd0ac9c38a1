"""From a running engine to a trace."""

import itertools
import time
from typing import TYPE_CHECKING

from nanovllm.engine.listener import Step
from nanovllm.engine.sequence import Sequence
from nanovllm.tracing.step_record import PHASES, StepRecord
from nanovllm.tracing.trace import Trace

if TYPE_CHECKING:  # it imports torch
    from nanovllm.engine.llm_engine import LLMEngine


class Recorder:
    """Appends a record of every step of an engine to a trace, from its making until `close`.

    It is a `Listener`: while it listens, the engine takes its steps one at a time, so that a record shows one step
    only. Owns neither the engine nor the trace.
    """

    one_step_at_a_time = True

    def __init__(self, engine: "LLMEngine", trace: Trace):
        self._engine, self._trace = engine, trace
        trace.meta |= {"block_size": engine.block_manager.block_size, "num_blocks": engine.block_manager.num_blocks,
                       "token_budget": engine.config.max_num_batched_tokens, "max_num_seqs": engine.config.max_num_seqs,
                       "model": engine.config.model.name}
        trace.began = time.perf_counter()
        engine.attach(self)

    def close(self) -> None:
        """Stop listening. May be called any number of times."""
        self._engine.detach(self)

    def joined(self, seq: Sequence) -> None:
        self._trace.joined(seq)

    def ended(self, seq: Sequence) -> None:
        self._trace.ended(seq)

    def stepped(self, step: Step) -> None:
        """Append the step's record."""
        times, began = step.timestamps, self._trace.began
        phases = {name: [start - began, end - start] for name, (start, end) in zip(PHASES, itertools.pairwise(times))}
        self._trace.append(StepRecord.of_step(self._engine.scheduler, step.number, times[0] - began, times[-1] - times[0],
                                              step.batch, step.token_ids, step.finished, phases))
