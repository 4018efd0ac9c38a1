"""SpeculationExplorer: each guess beside the model's own distribution, kept or struck."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted
from visualizations import theme
from visualizations.explorers.base import Explorer

SHOWN = 6  # of the likeliest tokens of a distribution
STILL_STEPS = 24
LETTER_POINTS = 9
LETTER = 0.602 * LETTER_POINTS / 72  # inches that a letter of the still picture is wide; its x axis counts letters
BETWEEN, STEP_NUMBER = 1.7, 8.5      # letters between two tokens, and for the number of the step


@dataclass
class RecordedSpeculation:
    """One answer, step by step. steps: {"drafts": token ids, "accepted": how many were kept, "drawn": the token drawn at each
    of their positions and behind them, "target", "draft": the distributions at each position, [num_positions, vocab_size]
    float32; "draft" is None for a drafter that has none}.
    """

    prompt_token_ids: list[int]
    output_token_ids: list[int]
    steps: list[dict[str, Any]]
    temperature: float


def record_speculation(llm: Any, prompt: str | list[int], params: SamplingParams | None = None) -> RecordedSpeculation:
    """Generate an answer with drafts and keep what both models thought at every drafted position.

    llm: an idle `LLM` with a drafter; afterwards it is idle again. Probabilities are those at the request's temperature,
    before filters. Raises ValueError without a drafter, for a busy engine, and for one that draws in captured graphs.
    """
    from nanovllm.serving.request import Request  # which needs torch, and figures do not

    engine, params = llm.engine, params or SamplingParams(temperature=0, max_tokens=32)
    check(engine.speculation is not None, "llm", llm, "one that drafts", "pass a speculative_config")
    check(not engine.has_unfinished, "engine", engine.scheduler, "idle", "finish or abort what it serves first")
    check(engine.model_runner.graphs is None, "llm", llm, "without CUDA graphs", "start it with enforce_eager=True")
    drafter = getattr(engine.speculation.drafter, "runner", None)
    said: dict[str, list[NDArray[np.float32]]] = {"target": [], "draft": []}
    runners = {"target": engine.model_runner} | ({"draft": drafter} if drafter else {})
    samplers = {name: runner.sampler for name, runner in runners.items()}

    def listening(name: str) -> Callable[[Any, Any], Any]:
        def sampler(logits: Any, batch: Any) -> Any:
            said[name].append((logits.float() / (params.temperature or 1)).softmax(-1).cpu().numpy())
            return samplers[name](logits, batch)
        return sampler

    steps: list[dict[str, Any]] = []

    class Listener:
        one_step_at_a_time = True

        def joined(self, seq: Any) -> None: ...

        def ended(self, seq: Any) -> None: ...

        def stepped(self, step: Any) -> None:
            item, = step.batch.items
            if item.samples:
                steps.append({"drafts": list(item.draft_token_ids), "accepted": item.num_accepted or 0,
                              "drawn": list(step.token_ids), "target": said["target"][-1],
                              "draft": np.concatenate(said["draft"]) if said["draft"] else None})
            for rows in said.values():
                rows.clear()

    listener = Listener()
    request = Request(engine, llm.tokenizer, prompt, params, grammars=llm.grammars)
    for name, runner in runners.items():
        runner.sampler = listening(name)
    engine.attach(listener)
    try:
        request.submit()
        while not request.is_finished:
            engine.step()
            request.advance()
    finally:
        engine.detach(listener)
        for name, runner in runners.items():
            runner.sampler = samplers[name]
        request.abort()
    seq = request.sequences[0]
    return RecordedSpeculation(list(request.prompt_token_ids), seq.token_ids[seq.num_prompt_tokens:], steps, params.temperature)


class SpeculationExplorer(Explorer):
    """A recorded answer step by step: the text so far, the guesses of this step, and what both models thought of each.

        SpeculationExplorer(record_speculation(llm, prompt), llm.tokenizer.decode)

    Choose a guess (click, or up and down) to see the model's distribution at its position beside the drafter's. decode:
    token id -> its text.
    """

    module = "speculation.js"

    def __init__(self, recorded: RecordedSpeculation, decode: Callable[[int], str] | None = None, *, step: int = 1,
                 colour: int = 0, label: str = "Guesses, kept and struck") -> None:
        check(bool(recorded.steps), "recorded", recorded, "a step or more", "record an answer of some tokens")
        self.recorded = recorded
        self._decode = decode or str
        steps, length = [], 0
        for s in recorded.steps:
            positions = [self._position(s, i) for i in range(len(s["drawn"]))]
            new = min(s["accepted"] + 1, len(recorded.output_token_ids) - length)
            steps.append({"before": length, "new": new, "accepted": s["accepted"], "positions": positions[:s["accepted"] + 1],
                          "struck": [self._decode(token) for token in s["drafts"][s["accepted"]:]]})
            length += new
        words = [self._decode(token) for token in recorded.output_token_ids]
        super().__init__({"steps": steps, "words": words, "temperature": recorded.temperature, "colour": colour}, label=label,
                         step=min(step, len(steps) - 1))

    def _position(self, step: dict[str, Any], i: int) -> dict[str, Any]:
        guess = step["drafts"][i] if i < len(step["drafts"]) else None
        marked = [token for token in (guess, step["drawn"][i]) if token is not None]
        draft = step["draft"][i] if step["draft"] is not None and guess is not None and i < len(step["draft"]) else None
        return {"guess": None if guess is None else self._decode(guess), "drawn": self._decode(step["drawn"][i]),
                "kept": guess is not None and i < step["accepted"],
                "bars": self._bars(step["target"][i], draft, marked)}

    def _bars(self, target: NDArray[np.float32], draft: NDArray[np.float32] | None, marked: list[int]) -> list[list[Any]]:
        """[text, the model's probability, the drafter's or None, is it the guess or the draw], likeliest first."""
        ids = np.argsort(-target, kind="stable")[:SHOWN].tolist()
        ids += [token for token in dict.fromkeys(marked) if token not in ids]
        return [[self._decode(i), round(float(target[i]), 4), None if draft is None else round(float(draft[i]), 4), i in marked]
                for i in ids]

    def summary(self) -> str:
        drafted = sum(len(s["drafts"]) for s in self.recorded.steps)
        kept = sum(s["accepted"] for s in self.recorded.steps)
        tokens, steps = len(self.recorded.output_token_ids), len(self.recorded.steps)
        return (f"{self.label}: {counted(tokens, 'token')} in {counted(steps, 'step')}; {kept} of "
                f"{counted(drafted, 'guess', 'guesses')} were kept. Run this cell in JupyterLab to step through them.")

    def figure(self) -> Figure:
        """The text, a line for each step: kept guesses in colour, refused ones struck, the model's own token dark."""
        lines = [self._pieces(step) for step in self.recorded.steps[:STILL_STEPS]]
        longest = max(sum(len(text) + BETWEEN for text, _ in pieces) for pieces in lines)
        half = (theme.WIDEST - 0.2) / LETTER / 2
        columns = 2 if len(lines) > 4 and longest + STEP_NUMBER < half else 1
        rows = ceil(len(lines) / columns)
        fig, ax = theme.canvas(None, theme.WIDEST, 0.26 * rows + 0.75)
        theme.no_axes(ax)
        m = theme.mode()
        for nth, pieces in enumerate(lines):
            column, row = divmod(nth, rows)
            x = column * half
            ax.text(x, -row, f"step {nth}", fontsize=9, va="center", color=m.muted)
            x += STEP_NUMBER
            for text, kind in pieces:
                colour = theme.prompt_colour(0) if kind == "own" else theme.decode_colour(0)
                ax.text(x, -row, text, family="DejaVu Sans Mono", fontsize=LETTER_POINTS, va="center", parse_math=False,
                        gid=f"{kind}-{nth}", color=m.muted if kind == "struck" else theme.text_on(colour),
                        bbox={"facecolor": m.paper if kind == "struck" else colour, "edgecolor": m.line,
                              "linestyle": "-" if kind == "own" else ":", "boxstyle": "round,pad=0.15"})
                if kind == "struck":
                    ax.plot([x - 0.2, x + len(text) + 0.2], [-row, -row], color=m.ink, linewidth=1, zorder=4)
                x += len(text) + BETWEEN
        ax.set(xlim=(0, 2 * half), ylim=(0.6 - rows, 0.6))
        theme.title(ax, self.label,
                    "A line is one step. Light guesses were kept, struck ones refused; dark is the model's own.")
        return fig

    def _pieces(self, step: dict[str, Any]) -> list[tuple[str, str]]:
        """A step's tokens in the order of the text: (what is written, "kept", "own" or "struck")."""
        kinds = [(token, "kept" if i < step["accepted"] else "struck") for i, token in enumerate(step["drafts"])]
        kinds.insert(step["accepted"], (step["drawn"][step["accepted"]], "own"))
        return [(self._decode(token).replace("\n", "⏎").replace(" ", "·") or "∅", kind) for token, kind in kinds]
