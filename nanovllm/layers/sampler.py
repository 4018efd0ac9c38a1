"""From scores to tokens: one draw a row, each row by its own rules."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nanovllm.layers.logits_processors import LogitsProcessors
from nanovllm.layers.noise import gumbel_noise
from nanovllm.sampling_params import SamplingParams

NOT_FINITE = -1  # in place of a token: the row's scores are not all numbers, and nothing can be drawn from them


class Draw(Protocol):
    """`draw`, or its twin in `kernels/sample.py`."""

    def __call__(self, logits: Tensor, temperatures: Tensor, seeds: Tensor, offsets: Tensor, masked: bool = False) -> Tensor:
        ...


@dataclass(slots=True)
class Filters:
    """What the rows that restrict their draw ask for. A filter that none of them asks for is None and costs nothing.

    rows: [num_filtered] int64, which rows of the step they are.
    top_k: [num_filtered, 1] int64. top_p, min_p: [num_filtered, 1] float32.
    """

    rows: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None


@dataclass(slots=True)
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
                filters.top_k = tensor([[p.top_k if p.top_k > 0 else 2**31] for p in asked], torch.int64)
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


class Sampler(nn.Module):
    """Draws one token a row. Owns nothing: what it draws follows from the logits and the batch alone.

    Processors and filters come in transformers' order, bias, penalties, temperature, top-k, top-p, min-p, and mean the
    same as its own. They need the whole distribution, so only rows that ask for them pay; all others are drawn in one
    pass, by `draw` or its twin in `kernels/sample.py`.

    A row whose logits hold a NaN or an infinity, or whose tokens are all forbidden, gets NOT_FINITE instead of a token.
    """

    def __init__(self, draw: Draw = draw):
        super().__init__()
        self.draw = draw

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
            own = temperatures[rows]
            scores = filter_logits(logits[rows].float() / own[:, None], batch.filters)
            drawn = self.draw(scores, torch.ones_like(own), seeds[rows], offsets[rows], True)
            # Of what stands as -inf now, only the draw before the filters knows whether a filter put it there.
            tokens[rows] = drawn.masked_fill_(tokens[rows] < 0, NOT_FINITE)
        return tokens


def filter_logits(scores: Tensor, filters: Filters) -> Tensor:
    """Set to -inf what each row's filters exclude. scores: [num_filtered, vocab_size], divided by temperature already."""
    top_k, top_p, min_p = filters.top_k, filters.top_p, filters.min_p
    if top_k is not None or top_p is not None:
        ordered, order = scores.sort(-1, descending=True)
        if top_k is not None:  # by value, not by rank: ties with the k-th stay, as in transformers
            kth = ordered.gather(-1, top_k.clamp(max=scores.shape[-1]) - 1)
            scores = scores.masked_fill(scores < kth, float("-inf"))
            ordered = ordered.masked_fill(ordered < kth, float("-inf"))
        if top_p is not None:
            probs = ordered.softmax(-1)
            before = probs.cumsum(-1) - probs  # what the more likely tokens add up to: 0 for the first, so it stays
            drop = (before >= top_p) & (top_p < 1)
            scores = scores.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    if min_p is not None:
        probs = scores.softmax(-1)
        scores = scores.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), float("-inf"))
    return scores
