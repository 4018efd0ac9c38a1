"""Padding waste: rows that a captured batch computes for nobody."""

from collections import Counter
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_padding_waste(buckets: Iterable[int], batch_sizes: Iterable[int], *, ax: Axes | None = None) -> Figure:
    """Rows computed in each bucket: real ones, and the padding that fills a batch up to the captured size.

    buckets: the batch sizes that were captured. batch_sizes: those that occurred, one for each step (of a trace:
    `[len(r.tokens) for r in trace]`; of all sizes alike: `range(1, 257)`). Batches above the largest bucket run without
    a graph and are counted at its right.
    """
    buckets = sorted(set(buckets))
    sizes = Counter(n for n in batch_sizes if n > 0)
    check(bool(buckets) and buckets[0] >= 1, "buckets", buckets, "batch sizes of 1 or more", "pass the captured sizes")
    check(bool(sizes), "batch_sizes", [], "at least one batch", "pass the sizes that occurred")
    real: Counter[int | None] = Counter()
    padded: Counter[int | None] = Counter()
    for size, steps in sizes.items():
        bucket = next((b for b in buckets if b >= size), None)
        real[bucket] += size * steps
        padded[bucket] += ((bucket or size) - size) * steps
    shown = [*buckets, *([None] if None in real else [])]
    fig, ax = theme.canvas(ax, 10, 3.2)
    m = theme.mode()
    for x, bucket in enumerate(shown):
        ax.bar(x, real[bucket], 0.76, color=theme.HUES[0] if bucket else theme.GREY, gid="real")
        ax.bar(x, padded[bucket], 0.76, real[bucket], facecolor=m.paper, edgecolor=m.muted, hatch=theme.WASTE_HATCH,
               linewidth=0.9, gid="padding")
        rows = real[bucket] + padded[bucket]
        if rows and bucket and len(shown) <= 24:
            ax.annotate(f"{padded[bucket] / rows:.0%}", (x, rows), (0, 2), textcoords="offset points", ha="center",
                        fontsize=8.5, color=m.muted)
    every = max(1, len(shown) // 24)
    ticks = range(0, len(shown), every)
    ax.set_xticks(ticks, [str(shown[i] or "eager") for i in ticks])
    tallest = max(real[b] + padded[b] for b in shown)
    ax.set(xlabel="bucket: captured batch size (sequences)", ylabel="rows computed", xlim=(-0.7, len(shown) - 0.3),
           ylim=(0, tallest * 1.12))
    waste = sum(padded.values()) / (sum(real.values()) + sum(padded.values()))
    theme.title(ax, "What padding costs", f"Dotted: rows computed for nobody, {waste:.1%} of all in {sum(sizes.values()):,} "
                "steps. More buckets waste less and take longer to capture.")
    return fig
