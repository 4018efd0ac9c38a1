"""A step that checks guesses: what was guessed, what the model drew in its place, and what the text gains."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

HEIGHT = 0.62
ROWS = ("guessed", "drawn", "the text gains")


@theme.in_both_modes
def plot_draft_check(guessed: Sequence[int], drawn: Sequence[int], *, title: str = "Which guesses are kept?",
                     ax: Axes | None = None) -> Figure:
    """A column for each position: the guess above, the model's draw below it, and under both what goes into the text.

    guessed, drawn: token ids; the model draws one more than was guessed. Light tokens are guesses that were kept, the dark one
    is the model's own, dotted and struck is what is dropped. Raises ValueError when the lengths do not fit.
    """
    check(len(drawn) == len(guessed) + 1, "len(drawn)", len(drawn), f"{len(guessed) + 1}, one more than guesses",
          "pass what the step drew, with the token behind the last guess")
    kept = next((i for i, guess in enumerate(guessed) if guess != drawn[i]), len(guessed))
    columns = len(drawn)
    fig, ax = theme.canvas(ax, 10, 2.6)
    m = theme.mode()
    for y, tokens in enumerate((guessed, drawn, drawn[:kept + 1])):
        for x, token in enumerate(tokens):
            own, dropped = x == kept and y > 0, x > kept or (x == kept and y == 0)
            shade = m.paper if dropped else theme.prompt_colour(0) if own else theme.decode_colour(0)
            ax.add_patch(Rectangle((x, -y - HEIGHT / 2), 0.8, HEIGHT, facecolor=shade, linewidth=1,
                                   edgecolor=m.muted if dropped else shade, linestyle=":" if dropped or not y else "-",
                                   gid=f"{ROWS[y]}-{'dropped' if dropped else 'own' if own else 'kept'}"))
            ax.text(x + 0.4, -y, str(token), ha="center", va="center_baseline", fontsize=10,
                    color=m.muted if dropped else theme.text_on(shade))
            if dropped:
                ax.plot([x + 0.18, x + 0.62], [-y, -y], color=m.ink, linewidth=1, gid="strike")
    for x in range(min(kept + 1, len(guessed))):
        ax.text(x + 0.4, -0.5, "=" if x < kept else "≠", ha="center", va="center", fontsize=10, color=m.ink,
                fontweight="bold")
    theme.no_axes(ax)
    ax.set_yticks([-y for y in range(len(ROWS))], ROWS, color=m.ink)
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(-0.1, max(columns, 8) + 0.1), ylim=(-2.5, 0.5))
    theme.title(ax, title, "Light: kept guesses. Dark: the model's own token. Struck: dropped.")
    return fig
