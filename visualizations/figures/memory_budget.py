"""The memory budget: where the bytes of a device go."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme

GIB = 2**30


@theme.in_both_modes
def plot_memory_budget(budgets: Mapping[str, Mapping[str, int]], total: int, *, bytes_per_token: int | None = None,
                       cache: str = "KV cache", title: str = "Where the memory goes", caption: str | None = None,
                       rest: str = "not ours", ax: Axes | None = None) -> Figure:
    """A stacked bar for each configuration, in GiB, and the rest of the device's memory, pale.

    budgets: {configuration: {part: bytes}}, parts in the same order in each. total: bytes of the device. The part named
    `cache` gets the accent; with `bytes_per_token` it says how many tokens it holds. caption: instead of the cache's share.
    rest: what the legend calls the memory that is left.
    Raises ValueError when a configuration does not fit.
    """
    parts = list(dict.fromkeys(part for budget in budgets.values() for part in budget))
    for name, budget in budgets.items():
        check(sum(budget.values()) <= total, f"bytes of {name!r}", sum(budget.values()), f"at most total={total}",
              "a device cannot hold more than it has")
    fig, ax = theme.canvas(ax, 10, 0.62 * len(budgets) + 1.75)
    m = theme.mode()
    others = [p for p in parts if p != cache]
    shades = {p: theme.mix(theme.GREY, m.ink if i % 2 == 0 else m.paper, 0.35 * (i // 2 + 1) / (len(others) // 2 + 1) + 0.12)
              for i, p in enumerate(others)} | {cache: theme.prompt_colour(0)}
    words = []
    for y, budget in enumerate(budgets.values()):
        left = 0.0
        for part in parts:
            size = budget.get(part, 0) / GIB
            ax.barh(-y, size, 0.66, left, color=shades[part], edgecolor=m.paper, linewidth=0.8, gid=part,
                    label=part if y == 0 else None)
            texts = [f"{size:.1f} GiB", f"{size:.1f}"]
            if part == cache and bytes_per_token and part in budget:
                texts.insert(0, f"{size:.1f} GiB: {budget[part] // bytes_per_token:,} tokens")
            text = next((t for t in texts if size > total / GIB * (0.0122 * len(t) + 0.01)), "")  # the longest that fits
            ax.text(left + size / 2, -y, text, ha="center", va="center", fontsize=9, color=theme.text_on(shades[part]))
            left += size
        ax.barh(-y, total / GIB - left, 0.66, left, color=m.free, gid="rest", label=rest if y == 0 else None)
        words.append(budget.get(cache, 0) / total)
    ax.set_yticks([-i for i in range(len(budgets))], list(budgets), color=m.ink)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="memory of the device (GiB)", xlim=(0, total / GIB), ylim=(-len(budgets) + 0.45, 0.55))
    theme.legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.03))
    share = f"{min(words):.0%}" if min(words) == max(words) else f"{min(words):.0%} to {max(words):.0%}"
    theme.title(ax, title, caption or
                f"The KV cache gets what weights and activations leave: here {share} of {total / GIB:.0f} GiB.")
    return fig
