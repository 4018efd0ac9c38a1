"""RoPE: each pair of channels is a dial that turns with the position, some fast, some hardly at all."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_rope(head_dim: int, theta: float, *, positions: Iterable[int] = range(8), pairs: list[int] | None = None,
              seq_id: int = 0, ax: Axes | None = None) -> Figure:
    """Dials of some channel pairs, with a hand for each position, the later the stronger.

    head_dim, theta: of the model (`config.head_dim`, `rope_theta(config)`). Pair i is channels i and i + head_dim / 2; it
    turns by theta ** (-2i / head_dim) radians a token. pairs: which to show; None takes six, more of the fast.
    """
    half = head_dim // 2
    pairs = sorted({round((i / 5) ** 2 * (half - 1)) for i in range(6)}) if pairs is None else pairs
    check(all(0 <= i < half for i in pairs), "pairs", pairs, f"0 to {half - 1}, for a head of {head_dim} channels",
          "pass the numbers of channel pairs")
    positions = list(positions)
    fig, ax = theme.canvas(ax, min(11, 1.75 * len(pairs) + 0.4), 2.6)
    m = theme.mode()
    for place, pair in enumerate(pairs):
        frequency = theta ** (-2 * pair / head_dim)
        x = place * 2.7
        ax.add_patch(Circle((x, 0), 1, facecolor=theme.mix(m.paper, m.free, 0.6), edgecolor=m.line, linewidth=1.1))
        for i, position in enumerate(positions):
            angle = position * frequency
            colour = theme.mix(theme.mix(theme.sequence_colour(seq_id), m.paper, 0.72), theme.sequence_colour(seq_id),
                               i / max(1, len(positions) - 1))
            end = x + np.cos(angle), np.sin(angle)
            ax.plot([x, end[0]], [0, end[1]], color=colour, linewidth=1.9, solid_capstyle="round",
                    gid=f"hand-{pair}-{position}")
            ax.plot(*end, marker="o", markersize=4.2, color=colour)
        ax.text(x, 1.2, f"pair {pair}", ha="center", va="bottom", fontsize=9.5, fontweight="bold", color=m.ink)
        ax.text(x, -1.2, f"a turn in\n{_count(2 * np.pi / frequency)} tokens", ha="center", va="top", fontsize=9, color=m.muted,
                linespacing=1.3)
    theme.no_axes(ax)
    ax.set(xlim=(-1.25, (len(pairs) - 1) * 2.7 + 1.25), ylim=(-2.1, 1.65), aspect="equal", anchor="NW")
    theme.title(ax, f"RoPE: {half} dials in a head of {head_dim} (theta {theta:,.0f})",
                f"Hands: positions {positions[0]} (faint) to {positions[-1]} (strong). Fast dials tell neighbours "
                "apart, slow ones far places.")
    return fig


def _count(number: float) -> str:
    return f"{number:.1f}" if number < 100 else f"{float(f'{number:.2g}'):,.0f}"
