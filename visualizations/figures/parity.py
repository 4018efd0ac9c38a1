"""Parity by layer: how far our tensors are from a reference implementation's."""

from collections.abc import Mapping
from math import log

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme

WORDS = 0.17  # of the axis: what "exactly equal" takes
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@theme.in_both_modes
def plot_parity(differences: Mapping[str, float], *, tolerance: float, against: str = "transformers",
                title: str | None = None, caption: str | None = None, ax: Axes | None = None) -> Figure:
    """A bar per layer, in the model's order: the largest absolute difference of its outputs, on a log scale.

    differences: {name of the layer: largest difference, 0 or more}. tolerance: what still counts as equal. An exact
    layer has no bar and says so; one above the tolerance is orange. title, caption: for what is compared but no layers.
    """
    check(len(differences) > 0 and all(d >= 0 for d in differences.values()), "differences", dict(differences),
          "one number of 0 or more for each layer", "pass (ours - theirs).abs().max() of each")
    fig, ax = theme.canvas(ax, 9, 0.235 * len(differences) + 1.6)
    m = theme.mode()
    positive = [d for d in differences.values() if d > 0] + [tolerance]
    left, right = min(positive) / 4, max(positive) * 4
    # Words begin behind the tolerance where they would otherwise lie on its line.
    words_at = tolerance if log(tolerance / left) < WORDS * log(right * 2.5 / left) else left
    for place, difference in enumerate(differences.values()):
        good = difference <= tolerance
        if difference > 0:
            ax.barh(-place, difference - left, 0.68, left, color=theme.HUES[0] if good else theme.HUES[1],
                    gid="equal" if good else "different")
        label = _written(difference) if difference > 0 else "exactly equal"
        ax.annotate(label, (difference or words_at, -place), (4, 0), textcoords="offset points", va="center", fontsize=8.5,
                    color=m.muted if good else m.ink, fontweight="normal" if good else "bold",
                    bbox=dict(facecolor=m.paper, edgecolor="none", pad=0.8), zorder=3)
    ax.axvline(tolerance, color=m.ink, linewidth=1.1, linestyle=(0, (5, 3)), gid="tolerance")
    ax.set_xscale("log")
    ax.set_yticks([-i for i in range(len(differences))], list(differences), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", labelsize=8.5, length=0)
    ax.set(xlabel=f"largest difference from {against} (dashed: tolerance {_written(tolerance)})", xlim=(left, right * 2.5),
           ylim=(-len(differences) + 0.4, 0.6))
    bad = [name for name, d in differences.items() if not d <= tolerance]
    theme.title(ax, title or f"Layer by layer against {against}", caption or (
                f"The first layer that differs is {bad[0]}: look there, all that follows inherits it." if bad else
                f"Largest: {_written(max(differences.values()))}. Rounding grows layer by layer; a wrong layer would jump."
                if any(differences.values()) else "Every number is equal to its last bit. A wrong layer would have a bar."))
    return fig


def _written(number: float) -> str:
    """Two digits of a number above 0, as one writes them by hand: 620, 0.086, 2.1 · 10⁻⁴, and 10⁻⁵ where the factor is 1."""
    factor, power = f"{number:.1e}".split("e")
    if -3 <= int(power) < 6:
        return f"{float(f'{number:.1e}'):,g}"
    return ("" if factor == "1.0" else f"{factor} · ") + "10" + str(int(power)).translate(RAISED)
