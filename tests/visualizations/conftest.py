"""Traces to draw: a real scheduler driven by a model that always says 7, and one with a preemption. No torch."""

import pytest

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.trace import StepRecord, Trace
from nanovllm.sampling_params import SamplingParams


def run(prompts: list[list[int]], max_tokens: int, *, num_blocks: int = 32, block_size: int = 4, budget: int = 12,
        prefix_caching: bool = True) -> Trace:
    """Serve `prompts` to their end and record every step, as an engine would."""
    scheduler = Scheduler(BlockManager(num_blocks, block_size, prefix_caching), max_num_batched_tokens=budget,
                          max_model_len=256)
    trace = Trace({"block_size": block_size, "num_blocks": num_blocks, "token_budget": budget,
                   "prompts": {i: len(p) for i, p in enumerate(prompts)}})
    for i, prompt in enumerate(prompts):
        scheduler.add(Sequence(i, prompt, SamplingParams(max_tokens=max_tokens)))
    while scheduler.has_unfinished:
        batch = scheduler.schedule()
        tokens = [7] * sum(item.samples for item in batch.items)
        finished = scheduler.update(batch, tokens)
        trace.records.append(StepRecord.of(len(trace), 0.0, 0.0, scheduler, batch, tokens, finished))
    return trace


@pytest.fixture(scope="session")
def shared_trace() -> Trace:
    """Three prompts of 14 tokens, the first 8 alike: two blocks of 4 are shared."""
    return run([[*range(10, 18), *range(20 * i, 20 * i + 6)] for i in range(1, 4)], max_tokens=6)


@pytest.fixture(scope="session")
def preempted_trace() -> Trace:
    """A cache too small for the three: somebody is thrown out and comes back."""
    trace = run([[30 * i + j for j in range(8)] for i in range(1, 4)], max_tokens=12, num_blocks=10, prefix_caching=False)
    assert any(r.preempted for r in trace)
    return trace
