"""TensorXRay: any entry of a step's tensors, and what it says: which token, at which position, in which slot, of whom."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted
from visualizations import theme
from visualizations.explorers.base import Explorer

STILL_TOKENS, STILL_LINE = 20, 10  # in all, and in a line
STILL_SEQUENCES = 8
STILL_BLOCKS = 8
LETTERS = 8  # of a word
PITCH, LINE = 1.42, 4.7  # between two tokens, and between two lines of them


class TensorXRay(Explorer):
    """The seven tensors of a step, laid out so that what belongs together stands together; point at an entry to read it.

        batch = llm.engine.scheduler.schedule()
        TensorXRay(x_ray(batch, llm.engine.model_runner.prepare(batch), block_size=16))

        with watch_tensors(llm) as steps:          # every step of a run, to be scrubbed
            llm.generate(prompts)
        TensorXRay(steps, decode=lambda token: llm.tokenizer.decode([token]))

    steps: one `x_ray`, or a list of them. decode: token id -> text. Entries that contradict each other (a slot that is not
    the one the block table says) are marked, so tensors of your own can be looked at, too.
    """

    module = "tensor_xray.js"

    def __init__(self, steps: dict[str, Any] | list[dict[str, Any]], *, decode: Callable[[int], str] | None = None,
                 step: int = 0, label: str = "A step's tensors, x-rayed") -> None:
        self.steps = [steps] if isinstance(steps, dict) else list(steps)
        check(bool(self.steps), "steps", steps, "at least one", "generate something inside watch_tensors")
        used = sorted({token for one in self.steps for token in one["tensors"]["input_ids"]})
        self._words = {token: decode(token) for token in used} if decode else {}
        super().__init__({"steps": self.steps, "words": self._words}, label=label, step=step)

    def summary(self) -> str:
        one = self._shown
        tokens, sequences = len(one["tensors"]["input_ids"]), len(one["sequences"])
        return (f"{self.label}: step {min(self.step, len(self.steps) - 1)} of {len(self.steps)}, "
                f"{counted(tokens, 'token')} of {counted(sequences, 'sequence')}. Run this cell in JupyterLab to point at an "
                "entry.")

    @property
    def _shown(self) -> dict[str, Any]:
        return self.steps[min(self.step, len(self.steps) - 1)]

    def figure(self) -> Figure:
        """The step shown: the tensors with an entry per token, then those with an entry per sequence."""
        one = self._shown
        rows = min(len(one["sequences"]), STILL_SEQUENCES)
        num_tokens = sum(seq["num_tokens"] for seq in one["sequences"])
        below = LINE * (min(-(-num_tokens // STILL_LINE), STILL_TOKENS // STILL_LINE) - 1)  # of further lines of tokens
        fig, ax = theme.canvas(None, 12.2, 0.26 * (rows + 9.5 + below))
        theme.no_axes(ax)
        ax.set(xlim=(-2.9, 14.6), ylim=(-(rows + 7.2 + below), 1.1))
        self._draw_tokens(ax, one)
        self._draw_sequences(ax, one, rows, -5.3 - below)
        theme.title(ax, self.label, "Above, an entry for each token; below, one for each sequence; -1 is a slot that is not "
                    "written, because its block was found cached.")
        return fig

    def _draw_tokens(self, ax: Axes, one: dict[str, Any]) -> None:
        m, tensors = theme.mode(), one["tensors"]
        owners = [seq for seq in one["sequences"] for _ in range(seq["num_tokens"])]
        for place, seq in enumerate(owners[:STILL_TOKENS]):
            line, column = divmod(place, STILL_LINE)
            x, top = column * PITCH, -line * LINE
            if not column:
                for row, name in enumerate(("input_ids", "positions", "slot_mapping"), 1):
                    ax.text(-0.75, top - row, name, ha="right", va="center", fontsize=9, color=m.muted)
            token, position, slot = (tensors[name][place] for name in ("input_ids", "positions", "slot_mapping"))
            shade = theme.phase_colour(seq["seq_id"], "prefill" if position < seq["num_prompt_tokens"] else "decode")
            word = self._words.get(token, f"#{seq['seq_id']}").strip() or "·"
            word = word if len(word) <= LETTERS else word[:LETTERS - 1] + "…"
            ax.add_patch(Rectangle((x - 0.47 * PITCH, top - 0.4), 0.94 * PITCH, 0.8, facecolor=shade, edgecolor="none"))
            ax.text(x, top, word, ha="center", va="center", fontsize=8.5, color=theme.text_on(shade), parse_math=False)
            for row, value in enumerate((token, position, slot), 1):
                ax.text(x, top - row, f"{value}", ha="center", va="center", fontsize=9, color=m.muted if value < 0 else m.ink)
        if len(owners) > STILL_TOKENS:
            ax.text(STILL_LINE * PITCH - 0.6, -LINE, "…", fontsize=10, color=m.muted, va="center")

    def _draw_sequences(self, ax: Axes, one: dict[str, Any], rows: int, top: float) -> None:
        m, tensors, size = theme.mode(), one["tensors"], one["block_size"]
        heads = ((0.9, "cu_seqlens_q"), (3.4, "context_lens"), (5.4, "block_tables"))
        for x, name in heads:
            side = "left" if name == "block_tables" else "center"
            ax.text(x, top + 0.1, name, ha=side, va="center", fontsize=9, color=m.muted)
        for row, seq in enumerate(one["sequences"][:rows]):
            y = top - 1 - row
            ax.text(-0.5, y, f"sequence {seq['seq_id']}", ha="right", va="center", fontsize=9, color=m.ink)
            begin, end = tensors["cu_seqlens_q"][row:row + 2]
            context = tensors["context_lens"][row]
            ax.text(0.9, y, f"{begin} … {end}", ha="center", va="center", fontsize=8.5, color=m.ink)
            ax.text(3.4, y, f"{context}", ha="center", va="center", fontsize=8.5, color=m.ink)
            colour = theme.prompt_colour(seq["seq_id"])
            for logical, block in enumerate(tensors["block_tables"][row][:STILL_BLOCKS]):
                held = logical * size < context
                ax.add_patch(Rectangle((5.4 + logical, y - 0.38), 0.86, 0.76, facecolor=colour if held else m.free,
                                             edgecolor="none"))
                ax.text(5.83 + logical, y, f"{block}", ha="center", va="center", fontsize=8,
                        color=theme.text_on(colour) if held else m.muted)
            if len(tensors["block_tables"][row]) > STILL_BLOCKS:
                ax.text(5.5 + STILL_BLOCKS, y, "…", ha="left", va="center", fontsize=10, color=m.muted)
        last = ", ".join(map(str, tensors["last_rows"][:12])) + (" …" if len(tensors["last_rows"]) > 12 else "")
        more = len(one["sequences"]) - rows
        ax.text(-0.5, top - 1.1 - rows, "last_rows", ha="right", va="center", fontsize=9, color=m.muted)
        ax.text(-0.2, top - 1.1 - rows, (last or "empty: nothing is drawn") + (f"     … {more} more sequences" if more else ""),
                ha="left", va="center", fontsize=8.5, color=m.ink)
