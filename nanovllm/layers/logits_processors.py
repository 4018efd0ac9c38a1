"""What changes the scores before temperature and filters: bias, tokens forbidden for now, penalties, and grammars' masks."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanovllm.layers.token_bitmask import TokenBitmask
from nanovllm.sampling_params import SamplingParams

CHUNK_ROWS = 64  # penalties take six times the memory of the scores they change, so they are put on so many rows at once


@dataclass
class Penalties:
    """Penalties on tokens that were there before, for the rows that ask for one.

    rows: [num_penalized] int64, which rows of the step they are.
    history: [num_penalized, longest] int64, each row's prompt and output, padded with the vocabulary's size.
    is_output: [num_penalized, longest] bool, False for the prompt and the padding.
    repetition, presence, frequency: [num_penalized, 1] float32.
    """

    rows: Tensor
    history: Tensor
    is_output: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor

    def apply(self, scores: Tensor) -> None:
        """Change the rows of `scores`, [num_rows, vocab_size] float32, in place."""
        for start in range(0, len(self.rows), CHUNK_ROWS):
            self._apply(scores, slice(start, start + CHUNK_ROWS))

    def _apply(self, scores: Tensor, some: slice) -> None:
        rows, history = self.rows[some], self.history[some]
        # One column more than there are tokens takes the padding.
        empty = scores.new_zeros(len(rows), scores.shape[-1] + 1)
        seen = empty.scatter(1, history, 1)[:, :-1] > 0
        counts = empty.scatter_add_(1, history, self.is_output[some].float())[:, :-1]
        own = scores[rows]
        repeated = torch.where(own > 0, own / self.repetition[some], own * self.repetition[some])
        own = torch.where(seen, repeated, own)
        scores[rows] = own - self.frequency[some] * counts - self.presence[some] * (counts > 0)


@dataclass
class LogitsProcessors:
    """Changes to the scores of one step, before temperature. What no row asks for is None and costs nothing.

    The order is vLLM's and transformers': bias and forbidden tokens, then penalties. Masks come last, over whatever these did.
    bias: rows, tokens [num_entries] int64 and values [num_entries] float32, added; -inf forbids a token.
    behind: likewise, 0 or -inf, of words that must not be written and have been begun; a token may be there twice.
    allowed: of the rows that may draw some tokens only.
    bitmask: of the rows whose text must have a shape. It is put here only once the logits are being computed.
    """

    bias: tuple[Tensor, Tensor, Tensor] | None = None
    penalties: Penalties | None = None
    bitmask: TokenBitmask | None = None
    allowed: TokenBitmask | None = None
    behind: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def from_rows(cls, params: list[SamplingParams], histories: list[list[int]], num_prompt_tokens: list[int],
                  last_tokens: Tensor, eos_token_ids: tuple[int, ...], vocab_size: int) -> "LogitsProcessors | None":
        """None when no row asks for anything. One entry for each row in:

        histories: prompt and output so far but for the last token; last_tokens: that one, [num_rows] int64 on the
        sampler's device, where it may just have been drawn.
        """
        device = last_tokens.device
        bias, penalized = [], []
        limited = [row for row, p in enumerate(params) if p.allowed_token_ids is not None]
        begun = [(row, last, token) for row, p in enumerate(params) for last, token in _begun_words(
            p.bad_words_ids, histories[row], num_prompt_tokens[row])]
        for row, p in enumerate(params):
            if p.logit_bias or p.min_tokens or p.bad_words_ids:
                num_output = len(histories[row]) + 1 - num_prompt_tokens[row]
                changes = dict(p.logit_bias or {})
                if num_output < p.min_tokens and p.structured_outputs is None:  # else the mask says it
                    changes |= dict.fromkeys(p.ending_tokens(eos_token_ids), float("-inf"))
                changes |= {word[0]: float("-inf") for word in p.bad_words_ids if len(word) == 1}
                bias += [(row, token, value) for token, value in changes.items()]
            if p.penalized:
                penalized.append(row)
        if not (bias or penalized or limited or begun):
            return None
        processors = cls()
        if bias:
            rows, tokens, values = zip(*bias)
            processors.bias = (torch.tensor(rows, dtype=torch.int64, device=device),
                               torch.tensor(tokens, dtype=torch.int64, device=device),
                               torch.tensor(values, dtype=torch.float32, device=device))
        if begun:
            owner, last, token = torch.tensor(begun, dtype=torch.int64, device=device).unbind(1)
            forbidden = torch.zeros(len(begun), dtype=torch.float32, device=device)
            processors.behind = owner, token, forbidden.masked_fill_(last_tokens[owner] == last, float("-inf"))
        if limited:
            bits = np.stack([_bits(params[row].allowed_token_ids or (), vocab_size) for row in limited])
            processors.allowed = TokenBitmask(torch.tensor(limited, dtype=torch.int64, device=device),
                                              torch.from_numpy(bits).to(device, non_blocking=True))
        if penalized:
            processors.penalties = _penalties(penalized, params, histories, num_prompt_tokens, last_tokens, vocab_size)
        return processors

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: [num_rows, vocab_size] -> changed scores, float32; the logits stay as they are.

        A row that held an infinity holds a NaN, and one that held a NaN still does.
        """
        scores = logits.to(torch.float32, copy=True)
        scores.masked_fill_(scores.isinf(), float("nan"))  # else it would look like a token forbidden here
        if self.bias is not None:
            rows, tokens, values = self.bias
            scores[rows, tokens] += values
        if self.behind is not None:
            rows, tokens, values = self.behind
            scores.index_put_((rows, tokens), values, accumulate=True)
        if self.penalties is not None:
            self.penalties.apply(scores)
        for mask in (self.allowed, self.bitmask):
            if mask is not None:
                mask.apply(scores, mask.rows, mask.bits)
        return scores


def _begun_words(words: tuple[tuple[int, ...], ...], history: list[int], num_prompt_tokens: int) -> list[tuple[int, int]]:
    """Of words of several tokens that the output may be about to end: (the token before the last, the last).

    history: prompt and output but for the last token, which only the device knows: there it is compared with the first of
    the two. A word counts that stands in the output from its first token on.
    """
    longest, output = len(history) - num_prompt_tokens + 2, history[num_prompt_tokens:]
    return [(word[-2], word[-1]) for word in words
            if 2 <= len(word) <= longest and output[len(output) + 2 - len(word):] == list(word[:-2])]


@lru_cache(maxsize=64)
def _bits(tokens: tuple[int, ...], vocab_size: int) -> npt.NDArray[np.int32]:
    """One bit per token, as `apply_bitmask` wants them: [ceil(vocab_size / 32)] int32. Not to be written to."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _penalties(penalized: list[int], params: list[SamplingParams], histories: list[list[int]], num_prompt_tokens: list[int],
               last_tokens: Tensor, vocab_size: int) -> Penalties:
    device = last_tokens.device
    rows = torch.tensor(penalized, dtype=torch.int64, device=device)
    lengths = torch.tensor([len(histories[row]) for row in penalized], dtype=torch.int64)
    history = torch.full((len(penalized), int(lengths.max()) + 1), vocab_size, dtype=torch.int64)
    for line, row in zip(history, penalized):
        line[:len(histories[row])] = torch.tensor(histories[row], dtype=torch.int64)
    position = torch.arange(history.shape[1])
    prompt = torch.tensor([num_prompt_tokens[row] for row in penalized], dtype=torch.int64)
    is_output = (position >= prompt[:, None]) & (position <= lengths[:, None])
    history = history.to(device, non_blocking=True).scatter_(1, lengths[:, None].to(device), last_tokens[rows][:, None])

    def column(name: str) -> Tensor:
        return torch.tensor([[getattr(params[row], name)] for row in penalized], dtype=torch.float32, device=device)

    return Penalties(rows, history, is_output.to(device), column("repetition_penalty"), column("presence_penalty"),
                     column("frequency_penalty"))
