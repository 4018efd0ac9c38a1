"""TokenMaskExplorer: which tokens a grammar allows at each step of an answer, and what that does to the distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check
from visualizations import theme
from visualizations.explorers.base import Explorer
from visualizations.explorers.sampler import record_logits

LIKELIEST = 5   # tokens of the model's own distribution, and as many of the allowed ones
CHIPS = 14      # allowed tokens that are named
ROWS = 24       # of the still picture


@dataclass
class RecordedMasks:
    """One answer with a shape, token by token.

    probabilities: [num_tokens, vocab_size] float32, the model's own, at temperature 1, before penalties and filters.
    allowed: [num_tokens, vocab_size] bool, what the grammar allowed. output_token_ids: the tokens drawn.
    """

    probabilities: NDArray[np.float32]
    allowed: NDArray[np.bool_]
    output_token_ids: list[int]

    @property
    def kept(self) -> NDArray[np.float64]:
        """The share of the probability that the allowed tokens hold at each step: [num_tokens]."""
        kept: NDArray[np.float64] = np.where(self.allowed, self.probabilities, 0).sum(-1, dtype=np.float64)
        return kept


def record_masks(llm: Any, prompt: str | list[int], params: SamplingParams) -> RecordedMasks:
    """Generate an answer with a shape, and keep each token's mask beside the distribution that it was applied to.

    llm: an idle `LLM`. params: with structured_outputs. Raises ValueError without them, and what `record_logits` raises.
    """
    shape = params.structured_outputs
    check(shape is not None, "structured_outputs", shape, "the shape of the answer", "pass StructuredOutputsParams")
    recorded, matcher = record_logits(llm, prompt, params), llm.grammars.matcher(shape)
    scores = recorded.logits - recorded.logits.max(-1, keepdims=True)
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    bits, allowed = np.zeros(-(-p.shape[-1] // 32), np.int32), np.zeros(p.shape, np.bool_)
    for row, token in zip(allowed, recorded.output_token_ids):
        matcher.fill_bitmask(bits)
        row[:] = np.unpackbits(bits.view(np.uint8), bitorder="little")[:p.shape[-1]]
        matcher.advance(token)
    return RecordedMasks(p, allowed, recorded.output_token_ids)


class TokenMaskExplorer(Explorer):
    """A recorded answer token by token: the text so far, the tokens that may follow, and the distribution with and without
    those that may not.

        TokenMaskExplorer(record_masks(llm, prompt, params), llm.tokenizer.decode)

    decode: token id -> its text. Raises ValueError for an answer without a token, and where arrays do not fit together.
    """

    module = "token_mask.js"

    def __init__(self, recorded: RecordedMasks, decode: Callable[[int], str] | None = None, *, step: int = 0,
                 colour: int = 0, label: str = "What may come next") -> None:
        num_tokens = len(recorded.output_token_ids)
        check(num_tokens > 0, "recorded", recorded, "an answer of a token or more", "record one")
        check(recorded.probabilities.shape == recorded.allowed.shape and len(recorded.allowed) == num_tokens, "allowed",
              recorded.allowed.shape, f"of the shape of probabilities, with {num_tokens} rows", "record it again")
        self.recorded, self._decode = recorded, decode or str
        super().__init__({"words": [self._decode(token) for token in recorded.output_token_ids],
                          "steps": [self._step(i) for i in range(num_tokens)],
                          "vocab_size": recorded.allowed.shape[-1], "colour": colour}, label=label,
                         step=min(step, num_tokens - 1))

    def _step(self, i: int) -> dict[str, Any]:
        """What one step shows. rows: [text, the model's probability, the one behind the mask or None, whether it was drawn]."""
        p, allowed, drawn = self.recorded.probabilities[i], self.recorded.allowed[i], self.recorded.output_token_ids[i]
        kept = float(self.recorded.kept[i])
        order = np.argsort(-p, kind="stable")
        followers = order[allowed[order]]
        ids = {*order[:LIKELIEST].tolist(), *followers[:LIKELIEST].tolist(), drawn}
        rows = [[self._decode(token), float(f"{p[token]:.3g}"),
                 float(f"{p[token] / kept:.3g}") if allowed[token] and kept else None, token == drawn]
                for token in sorted(ids, key=lambda token: (-p[token], token))]
        return {"allowed": int(allowed.sum()), "kept": float(f"{kept:.3g}"), "rows": rows,
                "chips": [self._decode(token) for token in followers[:CHIPS].tolist()]}

    def summary(self) -> str:
        recorded = self.recorded
        counts = recorded.allowed.sum(-1)
        return (f"{self.label}: {len(counts)} tokens; {counts.min():,} to {counts.max():,} of {recorded.allowed.shape[-1]:,} "
                f"tokens were allowed, which held {_percent(recorded.kept.min())} to {_percent(recorded.kept.max())} of the "
                "probability. Run this cell in JupyterLab to step through them.")

    def figure(self) -> Figure:
        """A row for each token of the answer, as long as the share of the probability that its mask kept."""
        recorded = self.recorded
        shown, kept = min(len(recorded.output_token_ids), ROWS), recorded.kept
        fig, ax = theme.canvas(None, 8, 0.25 * shown + 1.3)
        m = theme.mode()
        for row in range(shown):
            drawn = recorded.output_token_ids[row]
            wanted = int(recorded.probabilities[row].argmax())
            num_allowed = int(recorded.allowed[row].sum())
            words = f"{num_allowed:,} allowed: {_percent(kept[row])}"
            words += "" if wanted == drawn else f"; the model's first: {_shown(self._decode(wanted))}"
            ax.barh(-row, kept[row], 0.72, color=theme.decode_colour(0), gid=f"kept-{row}")
            ax.annotate(words, (kept[row] if kept[row] < 0.5 else 0, -row), (4, 0), textcoords="offset points", va="center",
                        fontsize=8.5, color=m.ink if kept[row] < 0.5 else theme.text_on(theme.decode_colour(0)),
                        fontweight="bold" if num_allowed > 1 else "normal", parse_math=False)
        ax.set_yticks([-row for row in range(shown)], [_shown(self._decode(t)) for t in recorded.output_token_ids[:shown]],
                      parse_math=False, family="DejaVu Sans Mono", color=m.ink)
        ax.set(xlabel="share of the model's probability that the mask keeps", xlim=(0, 1), ylim=(-shown + 0.4, 0.6))
        rest = len(recorded.output_token_ids) - shown
        theme.title(ax, self.label, "The answer from top to bottom; bold: there was a choice; a short bar: the model wanted "
                    "something else." + (f" {rest} more are not shown." if rest else ""))
        return fig


def _shown(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "∅"


def _percent(share: float) -> str:
    """Of a probability: 72 %, 0.7 %, 0.000003 %."""
    percent = 100 * float(share)
    if percent >= 99.95:
        return "100 %"
    if percent >= 1:
        return f"{percent:.3g} %"
    return f"{percent:.1g} %" if percent >= 0.001 else "under 0.001 %"
