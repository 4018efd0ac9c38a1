"""Room for drafts, in a step's budget and in the cache: what nobody else needs. Imports no torch."""

from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence


def decodes(seq: Sequence) -> bool:
    """Whether its next step computes its last token alone, and that is known."""
    return seq.num_uncomputed_tokens == 1 and not seq.num_pending_tokens


def reserve(scheduler: Scheduler, wanted: list[tuple[Sequence, int]], most_in_step: int) -> dict[int, int]:
    """How many drafts each may have, by seq_id, of as many as are wanted; their blocks are in its table by then.

    wanted: running sequences that decode. most_in_step: drafts of all together.
    """
    manager = scheduler.block_manager
    num_decoding = sum(map(decodes, scheduler.running))
    tokens = min(scheduler.max_num_batched_tokens - num_decoding, most_in_step)
    # What everybody's own tokens need comes first.
    blocks = manager.num_free_blocks - sum(
        manager.num_new_blocks(seq, max(len(seq), seq.num_computed_tokens + 1)) for seq in scheduler.running)
    if blocks < 0:  # somebody will be preempted
        return {}
    share, limits = max(1, most_in_step // num_decoding), {}
    for seq, length in wanted:
        limit = min(length, share, tokens)
        plain = manager.num_new_blocks(seq, len(seq))
        while limit > 0 and manager.num_new_blocks(seq, len(seq) + limit) - plain > blocks:
            limit -= 1
        if limit > 0:
            tokens -= limit
            blocks -= manager.num_new_blocks(seq, len(seq) + limit) - plain
            manager.append(seq, len(seq) + limit)
            limits[seq.seq_id] = limit
    return limits
