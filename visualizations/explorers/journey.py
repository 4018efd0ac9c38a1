"""JourneyExplorer: one prompt through every room of the engine, a stop at a time."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nanovllm.utils.counted import counted
from visualizations import theme
from visualizations.explorers.base import Explorer
from visualizations.figures.journey import ROOMS, plot_journey

STILL_LINES, STILL_VALUES = 14, 6  # in the still picture, which is as wide as a page and no wider
STILL_COLUMNS = 114  # of its code and values
ROW = 0.175  # inches that a line of them is high
CODE: dict[str, Any] = {"family": "DejaVu Sans Mono", "va": "center", "parse_math": False, "in_layout": False}
VALUE_ROWS = 2.4  # a value's name, the value, and some air


class JourneyExplorer(Explorer):
    """At each stop: the room, the function that ran and which of its lines, the live objects' values, tokens and blocks.

        JourneyExplorer(record_journey(llm, prompt, SamplingParams(max_tokens=8)))

    journey: what `record_journey` returned, or the same read back from JSON. step: the stop to begin with.
    """

    module = "journey.js"

    def __init__(self, journey: dict[str, Any], *, step: int = 0, label: str = "The life of a prompt"):
        self.journey = journey
        colours = [to_hex(shade(journey["seq_id"])) for shade in (theme.prompt_colour, theme.decode_colour)]
        super().__init__(journey | {"rooms": [room[:2] for room in ROOMS], "colours": colours}, label=label, step=step)

    def summary(self) -> str:
        stops, prompt = self.journey["stops"], self.journey["num_prompt_tokens"]
        return (f"{self.label}: {counted(len(stops), 'stop')} in {counted(stops[-1]['step'], 'step')}, "
                f"from {counted(prompt, 'prompt token')} to "
                f"{stops[-1]['text']!r}. Run this cell in JupyterLab to walk through them.")

    def figure(self) -> Figure:
        """The stop shown: the map, the code with the lines that ran, and below it the values."""
        stop = self.journey["stops"][self.step]
        source, values = self.journey["sources"][stop["source"]], stop["values"][:STILL_VALUES]
        lines, rows = min(len(source["lines"]), STILL_LINES), len(values) * VALUE_ROWS
        heights = [2.15, ROW * (lines + 1.6), ROW * (rows + 1.6)]  # inches
        fig, ax = theme.canvas(None, theme.WIDEST, 0.6 + sum(heights))
        ax.remove()
        parts = dict(zip(("map", "code", "values"), fig.subplots(3, 1, height_ratios=heights), strict=True))
        plot_journey(stop["room"], seq_id=self.journey["seq_id"], ax=parts["map"])
        theme.title(parts["map"], f"{self.label}: stop {self.step} of {len(self.journey['stops']) - 1}", stop["says"])
        for name, below in (("code", lines), ("values", rows)):
            theme.canvas(parts[name], 0, 0)
            theme.no_axes(parts[name])
            parts[name].set(xlim=(0, 1), ylim=(below - 0.4, -1.6))
        self._draw_code(parts["code"], source, stop)
        self._draw_values(parts["values"], values)
        return fig

    def _draw_code(self, ax: Axes, source: dict[str, Any], stop: dict[str, Any]) -> None:
        m = theme.mode()
        glow = theme.mix(m.paper, theme.sequence_colour(self.journey["seq_id"]), 0.16)
        ax.text(0, -1, f"{source['file']}:{source['first']}  {stop['source']}", fontsize=9, color=m.muted, va="center")
        begin = max(0, min(stop["lit"][0] - source["first"] - 2 if stop["lit"] else 0, len(source["lines"]) - STILL_LINES))
        for row, line in enumerate(source["lines"][begin:begin + STILL_LINES]):
            number = source["first"] + begin + row
            lit = number in stop["lit"]
            if lit:
                ax.axhspan(row - 0.5, row + 0.5, facecolor=glow)
            ax.text(0.005, row, f"{number:4d}  {_cut(line, STILL_COLUMNS - 6)}", fontsize=7.5, color=m.ink if lit else m.muted,
                    **CODE)

    def _draw_values(self, ax: Axes, values: list[tuple[str, str]]) -> None:
        m = theme.mode()
        ax.text(0, -1, "The live objects, at this moment", fontsize=9, color=m.muted, va="center")
        for i, (name, value) in enumerate(values):
            ax.text(0.005, VALUE_ROWS * i, name, fontsize=8, color=m.ink, fontweight="bold", **CODE)
            ax.text(0.03, VALUE_ROWS * i + 1, _cut(value.replace("\n", "⏎"), STILL_COLUMNS - 4), fontsize=7.5, color=m.ink,
                    **CODE)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest - 1] + "…"
