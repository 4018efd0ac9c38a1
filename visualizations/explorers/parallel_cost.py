"""ParallelCostExplorer: what a decode step costs on one to eight ranks, with the sums that join them."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations.explorers.base import Explorer
from visualizations.explorers.step_cost import DEVICES, SHAPES, ModelShape, packed, step_cost
from visualizations.figures.step_parts import plot_step_parts

RANKS = (1, 2, 4, 8)
SEQUENCES, CONTEXTS, LATENCIES = (1, 4, 16, 64, 256), (128, 512, 2048, 8192, 32768), (2, 5, 10, 19, 40)
WIDTHS = {2: "bf16, 2 bytes", 1: "8 bits, 1 byte", 0.5: "4 bits, half a byte"}


def knob(label: str, values: Sequence[float], value: float, word: str = "{:,g}") -> dict[str, Any]:
    """A knob for whatif.js: its settings, what each is called, and where it begins."""
    check(value in values, label, value, f"one of {', '.join(f'{v:g}' for v in values)}", "start at one of its settings")
    return {"label": label, "choices": [[v, word.format(v)] for v in values], "at": list(values).index(value)}


class ParallelCostExplorer(Explorer):
    """A bar per number of ranks, under knobs: model, card, sequences, context, the latency of a sum, bytes of a weight.

        ParallelCostExplorer()                                  # the 8B shape on an H200, one sequence
        ParallelCostExplorer(model="Qwen3-0.6B", sequences=64)

    The browser computes every bar itself (step_cost.js), so it needs no kernel. Raises ValueError for a model, a device or a
    setting that no knob has.
    """

    module = "parallel_cost.js"
    stylesheet = "what_if.css"

    def __init__(self, *, model: str = "Qwen3-8B", device: str = "H200", sequences: int = 1, context: int = 512,
                 latency: float = 10, weight_bytes: float = 2, shapes: Sequence[ModelShape] = SHAPES,
                 devices: Mapping[str, Mapping[str, float]] = DEVICES, label: str = "One step on several cards"):
        names = [shape.name for shape in shapes]
        check(model in names, "model", model, f"one of {', '.join(names)}", "choose one of these")
        check(device in devices, "device", device, f"one of {', '.join(devices)}", "choose one of these")
        self.chosen, self.device = shapes[names.index(model)], devices[device]
        self.settings: dict[str, Any] = {"sequences": sequences, "context": context, "weight_bytes": weight_bytes,
                                         "latency": latency * 1e-6}
        super().__init__({
            "shapes": [packed(shape) for shape in shapes], "devices": list(devices.values()), "ranks": RANKS,
            "caption": "A decode step, cut over 1, 2, 4 and 8 cards. Bold: the fastest.",
            "knobs": {"model": {"label": "model", "choices": [[i, n] for i, n in enumerate(names)], "at": names.index(model)},
                      "device": {"label": "card", "choices": [[i, n] for i, n in enumerate(devices)],
                                 "at": list(devices).index(device)},
                      "sequences": knob("sequences", SEQUENCES, sequences),
                      "context": knob("tokens in each", CONTEXTS, context),
                      "latency": knob("one sum takes", LATENCIES, latency, "{:g} µs + bytes"),
                      "bytes": {"label": "weights in", "choices": [[w, n] for w, n in WIDTHS.items()],
                                "at": list(WIDTHS).index(weight_bytes)}}}, label=label)

    def costs(self) -> dict[str, dict[str, float]]:
        """{bar: {part: seconds}} at the settings it began with."""
        return {f"{ranks} ranks" if ranks > 1 else "one card":
                step_cost(self.chosen, self.device, ranks=ranks, **self.settings) for ranks in RANKS}

    def summary(self) -> str:
        times = ", ".join(f"{name} {sum(parts.values()) * 1e3:.2f} ms" for name, parts in self.costs().items())
        return f"{self.label}, {self.chosen.name}: {times}. Run this cell in JupyterLab to turn the knobs."

    def figure(self) -> Figure:
        bars = {name: {part: seconds * 1e3 for part, seconds in parts.items()} for name, parts in self.costs().items()}
        return plot_step_parts(bars, title=f"{self.label}: {self.chosen.name}")
