"""Ablation: what each part is worth, as what is lost without it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_ablation(results: Mapping[str, float | Sequence[float]], *, unit: str, baseline: str | None = None,
                  better: str = "more", ax: Axes | None = None) -> Figure:
    """A bar for each configuration: the median of its runs, with a line from the lowest to the highest of them.

    results: {configuration: one measurement or several}. unit: of the numbers, such as "tokens/s". baseline: whose ratio
    the others show; None takes the first. better: "more" or "less".
    """
    check(better in ("more", "less"), "better", better, "'more' or 'less'", "say which end is good")
    runs = {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in results.items()}
    baseline = next(iter(runs)) if baseline is None else baseline
    check(baseline in runs, "baseline", baseline, f"one of {', '.join(runs)}", "name one of the results")
    fig, ax = theme.canvas(ax, 9, 0.42 * len(runs) + 1.55)
    m = theme.mode()
    medians = {name: float(np.median(values)) for name, values in runs.items()}
    for y, (name, values) in enumerate(runs.items()):
        is_baseline = name == baseline
        ax.barh(-y, medians[name], 0.64, color=theme.prompt_colour(0) if is_baseline else theme.decode_colour(0),
                gid="baseline" if is_baseline else "result")
        if len(values) > 1:
            ax.plot([values.min(), values.max()], [-y, -y], color=m.ink, linewidth=1.6, marker="|", markersize=8,
                    gid=f"range-{name}")
        ratio = "" if is_baseline else f"  ×{medians[name] / medians[baseline]:.2f}"
        shown = f"{medians[name]:,.0f}" if medians[name] >= 1000 else f"{medians[name]:.4g}"
        ax.annotate(f"{shown}{ratio}", (values.max(), -y), (6, 0), textcoords="offset points",
                    va="center", fontsize=9.5, color=m.ink, fontweight="bold" if is_baseline else "normal")
    ax.set_yticks([-i for i in range(len(runs))], list(runs), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=f"{unit} ({better} is better)", xlim=(0, max(v.max() for v in runs.values()) * 1.2),
           ylim=(-len(runs) + 0.4, 0.6))
    others = {name: value / medians[baseline] for name, value in medians.items() if name != baseline}
    caption = f"Dark: {baseline}; ×: the ratio to it."
    if others:
        worst = sorted(others, key=lambda name: others[name], reverse=better != "more")[0]
        if others[worst] < 1 if better == "more" else others[worst] > 1:
            caption += f" The largest loss: {worst}, ×{others[worst]:.2f}."
    theme.title(ax, "What each part is worth", caption)
    return fig
