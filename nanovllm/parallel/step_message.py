"""A step as a message: what worker processes need of a scheduled batch, and do not know already. Imports no torch."""

from dataclasses import dataclass, field

from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.token_matcher import TokenBitmasks
from nanovllm.sampling_params import SamplingParams


@dataclass(slots=True)
class StepMessage:
    """One step for all ranks. Plain data.

    joined: sequences that the ranks have not met, (seq_id, number of prompt tokens, seed, params). ended: those they may
    forget. items: for each scheduled sequence, in order, (seq_id, start, num_tokens, cached tokens, pending tokens, token
    ids that are new since the last message, drafts, block table or None when it is still the same). bitmasks: what masked
    rows may draw; the ranks know no grammars. masks_wait: they follow in a message of their own.
    """

    joined: list[tuple[int, int, int, SamplingParams]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    items: list[tuple[int, int, int, int, int, list[int], list[int], list[int] | None]] = field(default_factory=list)
    bitmasks: TokenBitmasks | None = None
    masks_wait: bool = False


class StepWriter:
    """Turns batches into messages. Owns a record of what the ranks know of each sequence, and nothing else.

    A message holds what changed: in a decode step that is one token per sequence, however long the sequences are.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Sequence, int, list[int]]] = {}  # seq_id -> (it, tokens sent, block table sent)

    def write(self, batch: ScheduledBatch) -> StepMessage:
        message = StepMessage(ended=[seq_id for seq_id, (seq, *_) in self._known.items() if seq.is_finished],
                              bitmasks=batch.bitmasks, masks_wait=batch.masks_wait)
        for seq_id in message.ended:
            del self._known[seq_id]
        for item in batch.items:
            seq = item.seq
            if seq.seq_id not in self._known:
                message.joined.append((seq.seq_id, seq.num_prompt_tokens, seq.seed, seq.sampling_params))
            _, num_sent, table = self._known.get(seq.seq_id, (seq, 0, []))
            same = table == seq.block_table
            message.items.append((seq.seq_id, item.start, item.num_tokens, seq.num_cached_tokens, seq.num_pending_tokens,
                                  seq.token_ids[num_sent:], item.draft_token_ids, None if same else list(seq.block_table)))
            self._known[seq.seq_id] = seq, len(seq.token_ids), table if same else list(seq.block_table)
        return message


class StepReader:
    """Turns messages back into batches. Owns a sequence for each one of the caller's: its twin, as of the last message."""

    def __init__(self) -> None:
        self._sequences: dict[int, Sequence] = {}

    def read(self, message: StepMessage) -> ScheduledBatch:
        for seq_id in message.ended:
            del self._sequences[seq_id]
        for seq_id, num_prompt_tokens, seed, params in message.joined:
            seq = self._sequences[seq_id] = Sequence(seq_id, [], params)
            seq.num_prompt_tokens, seq.seed = num_prompt_tokens, seed
        batch = ScheduledBatch(bitmasks=message.bitmasks, masks_wait=message.masks_wait)
        for seq_id, start, num_tokens, num_cached, num_pending, token_ids, drafts, table in message.items:
            seq = self._sequences[seq_id]
            seq.token_ids += token_ids
            seq.draft_token_ids = drafts
            seq.num_cached_tokens, seq.num_pending_tokens, seq.num_computed_tokens = num_cached, num_pending, start
            if table is not None:
                seq.block_table = table
            batch.items.append(ScheduledSequence(seq, start, num_tokens, ""))
        return batch
