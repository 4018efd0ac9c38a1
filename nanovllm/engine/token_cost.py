"""What one more token costs in a step on this machine: a few steps are timed before the first request. Imports no torch."""

import time
from collections.abc import Callable

from nanovllm.engine.runner import Runner
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.sequence import Sequence

CONTEXT = 16       # tokens before the ones that are timed
MORE = 8           # tokens that the longer step has more
ROUNDS = 8         # the first of them warms up
MOST_SECONDS = 0.3  # after which no further round begins, once there are two


def measured_token_cost(runner: Runner, block_size: int, max_model_len: int, expected: float,
                        clock: Callable[[], float] = time.perf_counter) -> float:
    """The share of a step of one token that each further token adds, at least 0; `expected` where there is no room to try.

    It depends on the model, the kernels and the machine: where weights come from memory, a second token is almost free; where
    they lie in a core's cache, it may cost a tenth of a step. Of the steps of each length the shortest counts, as others at
    work on the machine only ever lengthen one.

    Writes to the first blocks of the cache, which hold nothing yet: it must run before any request. clock: in seconds.
    """
    length = CONTEXT + MORE
    num_blocks = -(-length // block_size)
    if length > max_model_len or num_blocks > runner.num_blocks:
        return expected
    seq = Sequence(-1, [0] * CONTEXT)
    seq.num_prompt_tokens, seq.block_table = 1, list(range(num_blocks))
    shortest, began = {0: float("inf"), MORE: float("inf")}, clock()

    def run(start: int, num_drafts: int) -> None:
        seq.draft_token_ids = [0] * num_drafts
        runner.collect(runner.launch(ScheduledBatch([ScheduledSequence(seq, start, CONTEXT + num_drafts - start, "")])))

    run(0, 0)
    for i in range(ROUNDS):
        if i >= 2 and clock() - began > MOST_SECONDS:
            break
        for num_drafts in shortest:
            launched_at = clock()
            run(CONTEXT - 1, num_drafts)
            if i:
                shortest[num_drafts] = min(shortest[num_drafts], clock() - launched_at)
    runner.reset()
    one, several = shortest[0], shortest[MORE]
    return max(0.0, several / one - 1) / MORE if one > 0 else expected  # a clock may be too coarse to tell
