"""RooflineExplorer: a step under its card's roof, and what changes when a knob is turned."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations.explorers.base import Explorer
from visualizations.explorers.parallel_cost import CONTEXTS, SEQUENCES, WIDTHS, knob
from visualizations.explorers.step_cost import DEVICES, SHAPES, ModelShape, packed, step_cost, work_of
from visualizations.figures.roofline import Measured, plot_roofline

TOKENS = (1, 2, 5, 128, 1024)


class RooflineExplorer(Explorer):
    """Sliders for model, card, sequences, tokens, context, bytes of a weight and of the cache; the roofline, and two bars.

        RooflineExplorer()                          # one sequence of the 0.6B shape on an H200
        RooflineExplorer(sequences=256, tokens=1)

    A step can be kept and compared with the next. The browser computes everything itself (step_cost.js), so it needs no
    kernel. Raises ValueError for a model, a device or a setting that no knob has.
    """

    module = "roofline.js"
    stylesheet = "what_if.css"

    def __init__(self, *, model: str = "Qwen3-0.6B", device: str = "H200", sequences: int = 1, tokens: int = 1,
                 context: int = 512, weight_bytes: float = 2, cache_bytes: float = 2, shapes: Sequence[ModelShape] = SHAPES,
                 devices: Mapping[str, Mapping[str, float]] = DEVICES, label: str = "A step under its roof"):
        names = [shape.name for shape in shapes]
        check(model in names, "model", model, f"one of {', '.join(names)}", "choose one of these")
        check(device in devices, "device", device, f"one of {', '.join(devices)}", "choose one of these")
        self.chosen, self.device, self.device_name = shapes[names.index(model)], devices[device], device
        self.settings: dict[str, Any] = {"sequences": sequences, "context": context, "tokens": tokens,
                                         "weight_bytes": weight_bytes, "cache_bytes": cache_bytes}

        def width(of: str, value: float) -> dict[str, Any]:
            check(value in WIDTHS, of, value, f"one of {', '.join(f'{w:g}' for w in WIDTHS)}", "choose one of these")
            return {"label": of, "choices": [[w, n] for w, n in WIDTHS.items()], "at": list(WIDTHS).index(value)}

        super().__init__({
            "shapes": [packed(shape) for shape in shapes], "devices": list(devices.values()),
            "caption": "Under the slope memory is the limit, under the flat roof arithmetic. Turn one knob at a time.",
            "knobs": {"model": {"label": "model", "choices": [[i, n] for i, n in enumerate(names)], "at": names.index(model)},
                      "device": {"label": "card", "choices": [[i, n] for i, n in enumerate(devices)],
                                 "at": list(devices).index(device)},
                      "sequences": knob("sequences", SEQUENCES, sequences),
                      "tokens": knob("new tokens each", TOKENS, tokens), "context": knob("cached in each", CONTEXTS, context),
                      "bytes": width("weights in", weight_bytes), "cache": width("cache in", cache_bytes)}}, label=label)

    def seconds(self) -> float:
        """The least time of the step at the settings it began with."""
        return sum(step_cost(self.chosen, self.device, **self.settings).values())

    def summary(self) -> str:
        flops, num_bytes = work_of(self.chosen, **self.settings)
        return (f"{self.label}: {self.chosen.name} on {self.device_name}, {flops / num_bytes:.1f} operations per byte, "
                f"at least {self.seconds() * 1e3:.2f} ms. Run this cell in JupyterLab to turn the knobs.")

    def figure(self) -> Figure:
        flops, num_bytes = work_of(self.chosen, **self.settings)
        point = Measured(self.chosen.name, flops, num_bytes, self.seconds())
        return plot_roofline([point], peak_flops=self.device["flops"], bandwidth=self.device["read"], device=self.device_name)
