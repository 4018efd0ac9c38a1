"""The work triangle: tokens that go through the model, round by round, without a KV cache and with one."""

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from visualizations import theme


@theme.in_both_modes
def plot_work(num_prompt: int, num_output: int, *, seq_id: int = 0, ax: Axes | None = None) -> Figure:
    """A row per round, a square per token that is fed in it: everything again (left), or only what is new (right).

    num_prompt, num_output: tokens. Dark squares are prompt tokens, light ones generated tokens.
    """
    fig, ax = theme.canvas(ax, 10, 4.2)
    width = num_prompt + num_output - 1
    shift = width * 1.12
    rounds = range(num_output)
    naive = [(0, num_prompt + i) for i in rounds]
    cached = [(0, num_prompt)] + [(num_prompt + i, num_prompt + i + 1) for i in range(num_output - 1)]
    for left, spans in ((0, naive), (shift, cached)):
        for phase, clip in (("prefill", (0, num_prompt)), ("decode", (num_prompt, width))):
            squares = [Rectangle((left + x, y), 1, 1) for y, (start, end) in enumerate(spans)
                       for x in range(max(start, clip[0]), min(end, clip[1]))]
            ax.add_collection(PatchCollection(squares, facecolor=theme.phase_colour(seq_id, phase), linewidth=0.5,
                                              edgecolor=theme.mode().paper, gid=f"{phase}-{'cached' if left else 'naive'}"))
    total = [sum(end - start for start, end in spans) for spans in (naive, cached)]
    for left, name, count in ((0, "without a cache", total[0]), (shift, "with a cache", total[1])):
        ax.text(left, num_output + 0.6, f"{name}: {count:,} tokens", color=theme.mode().ink, fontsize=10, va="top")
    ax.set(xlim=(-0.5, shift + width + 0.5), ylim=(1.1 * num_output + 0.8, -0.5), xlabel="position of the token",
           ylabel="round")
    middle = [p for p in range(0, width, max(1, width // 4 // 10 * 10 or 5))]
    ax.set_xticks([p + 0.5 for p in middle] + [shift + p + 0.5 for p in middle], [str(p) for p in middle] * 2)
    theme.title(ax, "What goes through the model", f"{num_prompt} prompt tokens (dark) and {num_output} generated ones "
                f"(light): a cache saves {1 - total[1] / total[0]:.0%} of the work.")
    return fig
