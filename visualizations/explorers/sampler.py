"""SamplerExplorer: from a model's scores to the drawn token, with every filter under a slider."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check
from visualizations.explorers.base import Explorer
from visualizations.figures.sampling_filters import plot_sampling_filters, sampling_stages

SLIDERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
UNITS = 1000            # of a score: what travels is rounded to 1 / UNITS
WHOLE_VOCABULARY = 8192  # tokens; of a larger one only the likeliest are named
NAMED = 400             # of each row then
CONTEXT = 40            # tokens before the first row that are shown


@dataclass
class RecordedLogits:
    """What a model said before each token of one answer.

    logits: [num_rows, vocab_size] float32, before penalties, temperature and filters. Row i came after the prompt and the
    first i output tokens, and output_token_ids[i] was drawn from it, with `seed` and i as the offset of its noise.
    """

    logits: NDArray[np.float32]
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    params: SamplingParams
    seed: int


def record_logits(llm: Any, prompt: str | list[int], params: SamplingParams | None = None) -> RecordedLogits:
    """Generate an answer and keep the scores that each of its tokens was drawn from.

    llm: an idle `LLM`; afterwards it is idle again. The tokens are those of `llm.generate`. Raises ValueError for a busy
    engine, RuntimeError when it draws inside a captured graph, where nobody can look.
    """
    from nanovllm.serving.request import Request  # which needs torch, and figures do not

    check(not llm.engine.has_unfinished, "engine", llm.engine.scheduler, "idle", "finish or abort what it serves first")
    params = params or SamplingParams(max_tokens=8)
    check(params.n == 1, "n", params.n, "1", "follow one sample")
    rows, runner = [], llm.engine.model_runner
    sampler = runner.sampler

    def listen(logits: Any, batch: ScheduledBatch) -> Any:
        rows.append(_array(logits))
        return sampler(logits, batch)

    request = Request(llm.engine, llm.tokenizer, prompt, params, grammars=llm.grammars)
    runner.sampler = listen
    try:
        request.submit()
        while not request.is_finished:
            llm.engine.step()
            request.advance()
    finally:
        runner.sampler = sampler
        request.abort()
    seq = request.sequences[0]
    output = seq.token_ids[seq.num_prompt_tokens:]
    if (num_rows := sum(map(len, rows))) < len(output):
        raise RuntimeError(f"{num_rows} of {len(output)} draws were seen: the others ran inside a captured graph; "
                           "start the LLM with enforce_eager=True.")
    # An engine that looks ahead may have begun a step for nothing after the last token.
    return RecordedLogits(np.concatenate(rows)[:len(output)], list(request.prompt_token_ids), output, params, seq.seed)


class SamplerExplorer(Explorer):
    """Temperature, top-k, top-p, min-p and repetition penalty as sliders over real scores, and the draw they lead to.

        SamplerExplorer(logits, llm.tokenizer.decode)                         # one row of scores
        SamplerExplorer(record_logits(llm, prompt), llm.tokenizer.decode)     # every token of an answer, one a step

    The browser filters, draws and counts by itself, as `nanovllm.layers.sampler` does and with the same noise: at the
    settings of a recorded answer the first draw of each step is the token that the engine took.

    logits: [vocab_size] or [num_rows, vocab_size], a tensor, array or list; or what `record_logits` returned. They travel
    rounded to 3 decimals, some 5 kB a row of the offline model. decode: token id -> its text; None shows ids. params:
    where the sliders begin. seed: of the noise. prompt_token_ids, output_token_ids: what stood before the first row and
    what was drawn from each, for the text and the repetition penalty.
    Raises ValueError for scores of another shape, or that are not finite.
    """

    module = "sampler.js"

    def __init__(self, logits: RecordedLogits | Any, decode: Callable[[int], str] | None = None, *,
                 params: SamplingParams | None = None, seed: int = 0, prompt_token_ids: Sequence[int] = (),
                 output_token_ids: Sequence[int] = (), step: int = 0, colour: int = 0,
                 label: str = "From scores to a token") -> None:
        recorded = isinstance(logits, RecordedLogits)
        if recorded:
            params, seed = params or logits.params, logits.seed
            prompt_token_ids, output_token_ids = logits.prompt_token_ids, logits.output_token_ids
        rows = np.atleast_2d(logits.logits if recorded else _array(logits))
        check(rows.ndim == 2 and rows.shape[1] >= 2, "logits shape", rows.shape, "[vocab_size] or [num_rows, vocab_size]",
              "pass the scores of one sequence")
        check(bool(np.isfinite(rows).all()), "logits", rows[~np.isfinite(rows)][:3], "finite",
              "pass scores from before the filters")
        check(len(output_token_ids) in (0, len(rows)), "len(output_token_ids)", len(output_token_ids),
              f"0 or {len(rows)}, one for each row", "pass the token drawn from each row of logits")
        self.logits, self.params = rows.round(3), params or SamplingParams()
        self.prompt_token_ids, self.output_token_ids = list(prompt_token_ids), list(output_token_ids)
        self._decode = partial(_text, decode)
        super().__init__({
            "logits": np.rint(rows * UNITS).astype(int).tolist(), "units": UNITS, "prompt": self.prompt_token_ids,
            "output": self.output_token_ids, "words": self._words(), "context": CONTEXT, "seed": str(seed), "colour": colour,
            "recorded": recorded, "settings": {name: max(0, getattr(self.params, name)) for name in SLIDERS},
        }, label=label, step=step)

    def _words(self) -> dict[int, str]:
        """Texts of the tokens that the pictures name."""
        vocab_size = self.logits.shape[1]
        named: Iterable[int] = range(vocab_size)
        if vocab_size > WHOLE_VOCABULARY:
            top = np.argpartition(-self.logits, NAMED, axis=1)[:, :NAMED]
            named = sorted({*top.ravel().tolist(), *self.prompt_token_ids[-CONTEXT:], *self.output_token_ids})
        return {i: self._decode(i) for i in named}

    def summary(self) -> str:
        rows, vocab_size = self.logits.shape
        row = self.logits[min(self.step, rows - 1)]
        best = int(row.argmax())
        share = 1 / np.exp(row.astype(np.float64) - row[best]).sum()
        return (f"{self.label}: {rows} {'row' if rows == 1 else 'rows'} of scores over {vocab_size} tokens; in the one shown "
                f"the likeliest is {self._decode(best)!r}, at {share:.2f}. Run this cell in JupyterLab to move the sliders.")

    def figure(self) -> Figure:
        """The row shown, before and after each filter that is on."""
        params = self.params if not self.params.greedy else SamplingParams()
        row = min(self.step, len(self.logits) - 1)
        return plot_sampling_filters(sampling_stages(self.logits[row], params), self._decode)


def _array(logits: Any) -> NDArray[np.float32]:
    """Scores as float32 on the host, from a tensor on any device, an array or a list."""
    return logits.detach().float().cpu().numpy() if hasattr(logits, "detach") else np.asarray(logits, dtype=np.float32)


def _text(decode: Callable[[int], str] | None, token_id: int) -> str:
    return str(token_id) if decode is None else decode(token_id)
