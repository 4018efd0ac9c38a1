"""Steps of few tokens on a CPU: one call of the kernels from token ids to token ids, and no operator of torch around it."""

from array import array
from collections.abc import Mapping

from torch import Tensor

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.kernels.cpu.library import Batch, Draws
from nanovllm.models.causal_lm import CausalLM
from nanovllm.models.fused_cpu import FusedCPUModel
from nanovllm.sampling_params import SamplingParams

MOST_TOKENS = 16  # of one sequence; numpy lays out more of them faster (see `step_inputs`)


class ShortSteps:
    """Decode steps, with drafts or without, and the last few tokens of prompts.

    A step of one sequence would otherwise start some fifty operators of numpy and torch around the kernels, each of a few
    microseconds, which together take as long as a small model does. The arrays are Python's own, made for each step.
    """

    def __init__(self, model: FusedCPUModel, kv_cache: Tensor, block_size: int):
        self.model, self.kv_cache, self.block_size = model, kv_cache, block_size

    @classmethod
    def of(cls, model: CausalLM, kv_cache: Tensor, block_size: int) -> "ShortSteps | None":
        """None for a model that has no such form."""
        return cls(model, kv_cache, block_size) if isinstance(model, FusedCPUModel) else None

    def fits(self, batch: ScheduledBatch) -> bool:
        """Whether every sequence has few tokens, and draws."""
        return all(item.samples and item.num_tokens <= MOST_TOKENS
                   and (item.is_decode or item.seq.sampling_params.prompt_logprobs is None) for item in batch.items)

    def launch(self, batch: ScheduledBatch, pending: Mapping[int, int], draws_too: bool) -> tuple[Tensor, Tensor, list[int]]:
        """pending: by seq_id, the tokens that the sequences do not know yet. draws_too: at temperatures, not only greedily.

        Returns the logits, [num_draws, vocab_size], the token drawn from each row, [num_draws] int64 (see
        `FusedCPUModel.decode`), and the tokens before those.
        """
        laid_out = _LaidOut(batch, pending, self.block_size, draws_too)
        logits, tokens = self.model.decode(laid_out.batch, laid_out.draws, self.kv_cache)
        return logits, tokens, [laid_out.input_ids[row] for row in laid_out.rows]

    def draft(self, batch: ScheduledBatch, limits: list[int]) -> list[list[int]]:
        """Up to so many tokens of each sequence, all in one call. The items draw one token each, and none is pending."""
        laid_out = _LaidOut(batch, {}, self.block_size, draws_too=True)
        return self.model.draft(laid_out.batch, laid_out.draws, array("i", limits), self.kv_cache)


class _LaidOut:
    """The arrays of a step, and the structures that point to them: these live no longer than this."""

    def __init__(self, batch: ScheduledBatch, pending: Mapping[int, int], size: int, draws_too: bool):
        self.input_ids, self.rows, positions, slots = (array("q") for _ in range(4))
        starts, lengths, tables = array("i", [0]), array("i"), array("i")
        width = max(len(item.seq.block_table) for item in batch.items)
        for item in batch.items:
            seq, table, end = item.seq, item.seq.block_table, item.start + item.num_tokens
            self.input_ids.extend(seq.token_ids[item.start:end])
            if seq.num_pending_tokens:
                self.input_ids.append(pending[seq.seq_id])
            self.input_ids.extend(item.draft_token_ids)
            for position in range(item.start, end):
                positions.append(position)
                # Shared blocks are never written, not even with equal values.
                slots.append(-1 if position < seq.num_cached_tokens else table[position // size] * size + position % size)
            starts.append(len(self.input_ids))
            self.rows.extend(range(len(self.input_ids) - 1 - item.num_drafts, len(self.input_ids)))
            lengths.append(end)
            tables.extend(table)
            tables.extend([0] * (width - len(table)))
        self._kept = positions, slots, starts, lengths, tables
        self.batch = Batch(len(self.input_ids), len(lengths), width, *map(_address, self._kept))
        self.draws = Draws(input_ids=_address(self.input_ids), rows=_address(self.rows), num_rows=len(self.rows))
        if draws_too:
            draws = batch.draws
            self._asked = (array("f", [seq.sampling_params.temperature for seq, _ in draws]),
                           array("q", [seq.seed for seq, _ in draws]),
                           array("q", [position - seq.num_prompt_tokens for seq, position in draws]))
            temperatures, seeds, offsets = self._asked
            self.draws.temperatures, self.draws.seeds = _address(temperatures), _address(seeds)
            self.draws.offsets = _address(offsets)


def draws_plainly(params: SamplingParams) -> bool:
    """Whether temperature and noise are all that a draw needs, and its token all that is asked for."""
    return not (params.changes_scores or params.filtered or params.logprobs is not None)


def _address(numbers: "array[int] | array[float]") -> int:
    return numbers.buffer_info()[0]
