"""A step with drafts, laid out as decode rows: each drafted position is a row of its own. Imports no torch."""

from nanovllm.engine.scheduled_batch import ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.speculative_config import MOST_TOKENS


def one_token_each(items: list[ScheduledSequence]) -> list[ScheduledSequence]:
    """The same step with one item for each token, in the order of the draws. items: none may hold more than drafts.

    A sequence with k drafts is, for one step, 1 + k sequences of one token each, whose block tables are the same. Every layer
    stores the keys and values of all rows before any row attends, so each row finds those of the drafts before it. Checking
    drafts then is a decode step with more rows, and runs in the graphs and kernels that decode steps have.
    """
    if not any(item.draft_token_ids for item in items):
        return items
    return [row for item in items for row in _rows_of(item)]


def _rows_of(item: ScheduledSequence) -> list[ScheduledSequence]:
    if not item.num_drafts:
        return [item]
    seq, tokens, rows = item.seq, list(item.seq.token_ids), []
    for j, draft in enumerate([None, *item.draft_token_ids]):
        if draft is not None:
            tokens = [*tokens, draft]
        # Below 0 and its own: the sequence itself keeps the row that it decodes in.
        row = Sequence(-1 - (seq.seq_id * MOST_TOKENS + j - 1) if j else seq.seq_id, tokens, seq.sampling_params)
        row.num_prompt_tokens, row.seed, row.num_cached_tokens = seq.num_prompt_tokens, seq.seed, seq.num_cached_tokens
        row.block_table, row.logprobs = seq.block_table, seq.logprobs
        rows.append(ScheduledSequence(row, item.start + j, 1, item.reason))
    return rows
