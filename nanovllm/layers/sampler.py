"""From scores to tokens: one draw per row, each by its own sampling parameters."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nanovllm.layers.filters import filter_logits as filter_logits
from nanovllm.layers.logits_processors import LogitsProcessors
from nanovllm.layers.noise import gumbel_noise
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.filters import NO_TOP_K
from nanovllm.utils.filters import Filters as Filters

NOT_FINITE = -1  # in place of a token: the row's scores are not all numbers, and nothing can be drawn from them


class Draw(Protocol):
    """`draw`, or its twin in `kernels/sample.py`."""

    def __call__(self, logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, masked: bool = False) -> Tensor:
        ...


class FilteredDraw(Protocol):
    """`filtered_draw`, or its twin in `kernels/filtered_draw.py`."""

    def __call__(self, logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, filters: Filters, tokens: Tensor
                 ) -> Tensor: ...


@dataclass
class SamplingBatch:
    """What the rows of one step ask for.

    temperatures: [num_rows] float32; 0 marks a greedy row. seeds: [num_rows] int64, each request's own. offsets:
    [num_rows] int64, how many tokens the request has drawn before. All three None: every row is greedy.
    filters: None when no row that draws has any. processors: None when no row asks for a bias or a penalty.
    """

    temperatures: Tensor | None = None
    seeds: Tensor | None = None
    offsets: Tensor | None = None
    filters: Filters | None = None
    processors: LogitsProcessors | None = None

    @classmethod
    def from_params(cls, params: list[SamplingParams], seeds: list[int], offsets: list[int], device: torch.device | str = "cpu",
                    processors: LogitsProcessors | None = None) -> "SamplingBatch":
        """params, seeds, offsets: one for each row."""
        if all(p.greedy for p in params):
            return cls(processors=processors)

        def tensor(values: Iterable[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        filtered = [(row, p) for row, p in enumerate(params) if p.filtered]
        filters = None
        if filtered:
            rows, asked = zip(*filtered)
            filters = Filters(tensor(rows, torch.int64))
            if any(p.top_k > 0 for p in asked):
                filters.top_k = tensor([[p.top_k if p.top_k > 0 else NO_TOP_K] for p in asked], torch.int64)
            if any(p.top_p < 1 for p in asked):
                filters.top_p = tensor([[p.top_p] for p in asked], torch.float32)
            if any(p.min_p > 0 for p in asked):
                filters.min_p = tensor([[p.min_p] for p in asked], torch.float32)
        return cls(tensor([p.temperature for p in params], torch.float32), tensor(seeds, torch.int64),
                   tensor(offsets, torch.int64), filters, processors)


Sample = Callable[[Tensor, SamplingBatch], Tensor]  # logits [num_rows, vocab_size], batch -> token ids [num_rows] int64


def finite_rows(scores: Tensor, masked: bool = False) -> Tensor:
    """Which rows of scores, [num_rows, vocab_size], hold nothing but finite numbers: [num_rows] bool.

    masked: -inf marks a token that a filter or a processor forbids, which is no fault as long as one number is left.
    """
    lowest, highest = scores.aminmax(dim=-1)  # both NaN if any score is
    return (highest < float("inf")) & ((highest if masked else lowest) > float("-inf"))


def draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, masked: bool = False) -> Tensor:
    """Gumbel-max (Gumbel 1954): the argmax of scores plus Gumbel noise is distributed as their softmax.

    It needs no sum over the vocabulary, so no second pass, and a greedy row is the same thing without the noise.
    logits: [num_rows, vocab_size]; temperatures, seeds, offsets: [num_rows] -> token ids [num_rows] int64, NOT_FINITE for
    a row that `finite_rows` does not accept. masked: see there.
    """
    greedy = (temperatures == 0)[:, None]
    noise = gumbel_noise(seeds, offsets, logits.shape[-1]).masked_fill_(greedy, 0)
    tokens = (logits.float() / temperatures[:, None].masked_fill(greedy, 1)).add_(noise).argmax(-1)
    return tokens.masked_fill_(~finite_rows(logits, masked), NOT_FINITE)


def filtered_draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, filters: Filters, tokens: Tensor
                  ) -> Tensor:
    """As `draw`, among the tokens that the filters leave. filters: one entry for each row; its `rows` are not looked at.

    tokens: [num_rows] int64, what `draw` made of the same rows. Replaced in place, and returned, but for rows whose filters
    are all off, and for NOT_FINITE: of what is -inf behind the filters, only the draw before them knows who put it there.
    """
    greedy = temperatures == 0
    scores = filter_logits(logits.float() / temperatures.masked_fill(greedy, 1)[:, None], filters)
    drawn = draw(scores, (~greedy).float(), seeds, offsets, masked=True)
    return tokens.copy_(torch.where(filters.active() & (tokens >= 0), drawn, tokens))


class Sampler(nn.Module):
    """Draws one token per row. Owns nothing: what it draws follows from the logits and the batch alone.

    Processors and filters come in transformers' order, bias, penalties, temperature, top-k, top-p, min-p, and mean the
    same as its own. Only rows that ask for filters pay for them; all others are drawn in one pass. draw, filtered_draw:
    the functions above, or their twins in `kernels/`.

    A row whose logits hold a NaN or an infinity, or whose tokens are all forbidden, gets NOT_FINITE instead of a token.
    """

    def __init__(self, draw: Draw = draw, filtered_draw: FilteredDraw = filtered_draw):
        super().__init__()
        self.draw, self.filtered_draw = draw, filtered_draw

    def forward(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """logits: [num_rows, vocab_size] -> token ids [num_rows] int64. Never waits for the device."""
        masked = batch.processors is not None
        if batch.processors is not None:
            logits = batch.processors(logits)
        temperatures, seeds, offsets = batch.temperatures, batch.seeds, batch.offsets
        if temperatures is None or seeds is None or offsets is None:
            return logits.argmax(-1).masked_fill_(~finite_rows(logits, masked), NOT_FINITE)
        tokens = self.draw(logits, temperatures, seeds, offsets, masked)
        if batch.filters is not None:
            rows = batch.filters.rows
            tokens[rows] = self.filtered_draw(logits[rows], temperatures[rows], seeds[rows], offsets[rows], batch.filters,
                                              tokens[rows])
        return tokens
