"""From which token on two computations differ: a bar for each position."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme

MOST_LABELS = 48
LEVEL = 12  # tokens whose texts stand level under their bars; more are turned


@theme.in_both_modes
def plot_by_position(differences: Sequence[float], *, tolerance: float, tokens: Sequence[str | tuple[str, str]] = (),
                     quantity: str = "difference", title: str = "Position by position", seq_id: int = 0,
                     ax: Axes | None = None) -> Figure:
    """A bar for each position of a text, as high as what is compared differs there; the sign = where it is equal.

    differences: a number of 0 or more for each position. tolerance: what still counts as equal, such as rounding. tokens:
    the text of each, written under its bar; a pair of texts stands there one below the other. Raises ValueError without
    differences, or when tokens do not match them.
    """
    values = [float(d) for d in differences]
    check(bool(values) and min(values) >= 0, "differences", values, "a number of 0 or more for each position",
          "pass (ours - theirs).abs() reduced to one number a token")
    check(not tokens or len(tokens) == len(values), "tokens", len(tokens), f"{len(values)}, one a position, or none at all",
          "pass the text of each token")
    fig, ax = theme.canvas(ax, 10, 2.6 if tokens else 2.2)
    m, highest = theme.mode(), max(*values, tolerance)
    for place, value in enumerate(values):
        if value <= tolerance:  # a sign and no bar, whose height would say something
            ax.annotate("=", (place, 0), (0, 1), textcoords="offset points", ha="center", va="bottom", fontsize=10,
                        fontweight="bold", color=m.muted, gid=f"equal-{place}")
        else:
            ax.bar(place, value, 0.78, linewidth=0, gid=f"different-{place}", color=theme.prompt_colour(seq_id))
    if tokens:
        size = 9 if len(values) <= MOST_LABELS // 2 else 7.5
        turned: dict[str, Any] = {} if len(values) <= LEVEL else dict(rotation=60, ha="right", rotation_mode="anchor")
        ax.set_xticks(range(len(values)), [_written(token) for token in tokens], color=m.ink, fontsize=size, parse_math=False,
                      **turned)
        ax.tick_params(axis="x", length=0)
    ax.set(xlabel="" if tokens else "position of the token", ylabel=quantity, xlim=(-0.7, len(values) - 0.3),
           ylim=(0, highest * 1.08))
    different = [place for place, value in enumerate(values) if value > tolerance]
    if not different:
        caption = "Equal at every position, up to rounding."
    elif len(different) == len(values):
        caption = "Different at every position."
    elif different[-1] - different[0] + 1 == len(different) == len(values) - different[0]:
        caption = f"Equal before position {different[0]}, up to rounding; from there on everything differs."
    else:
        caption = f"Different at {len(different)} of {len(values)} positions, first at {different[0]}."
    theme.title(ax, title, caption)
    return fig


def _written(token: str | tuple[str, str]) -> str:
    """What stands under a bar: a space is a dot, what cannot be seen is written as Python writes it."""
    return "\n".join(repr(text)[1:-1].replace(" ", "·") for text in ([token] if isinstance(token, str) else token))
