"""Which rows of a step report log-probabilities, and where the numbers go."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.logprobs import TopLogprobs, top_logprobs

CHUNK_ROWS = 256  # a prompt's logits are made so many rows at once: 156 MB in float32 with 152,000 tokens


@dataclass(slots=True)
class LogprobReport:
    """Log-probabilities on their way from the device to the sequences that asked for them.

    targets: (sequence, position) of the token that row i of `top` belongs to; a prompt's own tokens have positions, too.
    """

    targets: list[tuple[Sequence, int]]
    top: TopLogprobs

    def fetch(self) -> None:
        """Send the numbers to the host, without waiting for them."""
        self.top = TopLogprobs(*(column.to("cpu", non_blocking=column.is_cuda) for column in self.top))

    def deliver(self) -> None:
        """Put the numbers, which must be on the host by now, into each sequence's `logprobs`."""
        for (seq, position), *entry in zip(self.targets, *(column.tolist() for column in self.top)):
            seq.note_logprobs({position: tuple(entry)})


def sampled_report(batch: ScheduledBatch, logits: Tensor, token_ids: Tensor) -> list[LogprobReport]:
    """Of the tokens just drawn: none or one report. logits: [num_sampled, vocab_size], as the model gave them."""
    draws = batch.draws
    wanted = {row: k for row, (seq, _) in enumerate(draws) if (k := seq.sampling_params.logprobs) is not None}
    if not wanted:
        return []
    rows = torch.tensor(list(wanted), dtype=torch.int64, device=logits.device)
    targets = [draws[row] for row in wanted]
    return [LogprobReport(targets, top_logprobs(logits[rows], token_ids[rows], max(wanted.values())))]


def prompt_reports(batch: ScheduledBatch, hidden: Tensor, compute_logits: Callable[[Tensor], Tensor]) -> list[LogprobReport]:
    """Of the prompts' tokens that this step predicts anew, in chunks. hidden: [num_tokens, hidden_size], of the whole step."""
    rows, targets, k, first = [], [], 0, 0
    for item in batch.items:
        seq, wanted = item.seq, item.seq.sampling_params.prompt_logprobs
        if wanted is not None:
            known = range(item.start, min(item.start + item.num_tokens, seq.num_prompt_tokens - 1))  # the next is prompt
            rows += [first + position - item.start for position in known]
            targets += [(seq, position + 1) for position in known]
            k = max(k, wanted)
        first += item.num_tokens
    reports = []
    for start in range(0, len(rows), CHUNK_ROWS):
        some = targets[start:start + CHUNK_ROWS]
        at = torch.tensor(rows[start:start + CHUNK_ROWS], dtype=torch.int64, device=hidden.device)
        logits = compute_logits(hidden[at])
        chosen = torch.tensor([seq.token_ids[position] for seq, position in some], dtype=torch.int64,
                              device=hidden.device)
        reports.append(LogprobReport(some, top_logprobs(logits, chosen, k)))
    return reports
