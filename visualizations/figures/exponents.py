"""How large the numbers of a model are, and which of them float16 can hold."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme

LEAST_NORMAL, LEAST, MOST = -14, -24, 15  # exponents of float16: full precision from -14 on, zero below -24, infinite above 15


@theme.in_both_modes
def plot_exponents(counts: Mapping[int, int], *, ax: Axes | None = None) -> Figure:
    """A bar for each power of two, as high as there are numbers of that size (log axis).

    counts: {exponent: how many numbers x with 2 ** exponent <= |x| < 2 ** (exponent + 1)}. Raises ValueError without one.
    """
    check(any(counts.values()), "counts", dict(counts), "at least one number", "count the exponents of a tensor")
    fig, ax = theme.canvas(ax, 9, 2.9)
    m = theme.mode()
    ax.bar(list(counts), list(counts.values()), 0.9, color=theme.sequence_colour(0), gid="numbers")
    ax.axvspan(LEAST - 0.5, LEAST_NORMAL - 0.5, color=m.line, alpha=0.5)
    ax.axvline(MOST + 0.5, color=m.ink, linestyle=(0, (5, 3)))
    ax.set(yscale="log", xlabel="exponent e (a weight of about 2 to the power of e)", ylabel="weights",
           xlim=(min(LEAST - 8, min(counts) - 1), MOST + 2))
    ax.text((LEAST + LEAST_NORMAL - 1) / 2, ax.get_ylim()[1] * 0.5, "float16 loses\none bit per step", ha="center", va="top",
            fontsize=9, color=m.ink)
    theme.title(ax, "How large the weights are", "Left of the grey band float16 holds zero, right of the dashed line infinity.")
    return fig
