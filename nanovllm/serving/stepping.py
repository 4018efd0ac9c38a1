"""Steps for everybody: of several threads that need one, one takes it, and a request that makes it fail ends alone."""

import logging
import traceback
from dataclasses import replace

import torch

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.errors import RequestFailed
from nanovllm.utils.interrupts import uninterrupted

logger = logging.getLogger("nanovllm")


def step(engine: LLMEngine, seen: int) -> int:
    """Take the engine's next step, unless another thread has taken one that the caller has not looked at yet.

    seen: what the last call returned, or `engine.num_steps` before the first. After each call the caller looks at its
    requests: the tokens of all of them are there, whoever took the step.

    A step that fails is tried again without the requests that make it fail, which end with `finish_reason` "error" and
    the exception as the cause of their `Sequence.error`. Raises what the step raised where these cannot be told apart:
    a process or the device is gone, or the scheduler itself failed.
    """
    with engine.turn:
        if engine.num_steps == seen:
            failed_before = engine.num_failed_steps
            try:
                engine.step()
            except Exception as error:
                if engine.num_failed_steps == failed_before:
                    raise  # the step is done: a listener raised this, or the engine is closed
                _step_without_failing_requests(engine, error)
        return engine.num_steps


def _step_without_failing_requests(engine: LLMEngine, error: Exception) -> None:
    """Take the step that failed with `error` in parts: halves of halves, until an item fails all by itself.

    What a request draws does not depend on who else is in its batch, so the others get the tokens they would have got.
    """
    logger.error("a step failed; it is tried again without the requests that make it fail", exc_info=error)
    if not _is_recoverable(engine, error):
        raise error
    with uninterrupted():
        batch = engine.scheduler.schedule()
    if not batch.items:
        raise error
    parts = [batch]
    while parts:
        batch = parts.pop()
        batch.items = [item for item in batch.items if not item.seq.is_finished]
        failed_before = engine.num_failed_steps
        try:
            if batch.items:
                engine.step(batch)
        except Exception as again:
            if engine.num_failed_steps == failed_before or not _is_recoverable(engine, again):
                raise
            if len(batch.items) == 1:
                _end(engine, batch.items[0], again)
            else:
                half = len(batch.items) // 2
                parts += [_part(batch, half, None), _part(batch, 0, half)]


def _is_recoverable(engine: LLMEngine, error: Exception) -> bool:
    """Whether another step may succeed. What the failed one held, an activation or two, is let go first."""
    traceback.clear_frames(error.__traceback__)
    return engine.failure is None and not isinstance(error, torch.AcceleratorError)  # after which the device does nothing more


def _end(engine: LLMEngine, item: ScheduledSequence, cause: Exception) -> None:
    failed = RequestFailed(f"a step of the engine failed: {cause!r}")
    failed.__cause__ = cause
    item.seq.error = failed
    engine.abort(item.seq.seq_id, "error")


def _part(batch: ScheduledBatch, start: int, stop: int | None) -> ScheduledBatch:
    """Some of the items; what the scheduler did to others is told with the first."""
    items = batch.items[start:stop]
    if start:
        return ScheduledBatch(items)
    return replace(batch, items=items, is_advanced=False)
