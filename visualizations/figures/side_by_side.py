"""The same works done by several: a group of bars for each work."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from visualizations import theme

SIZE = 8.5  # of the labels, in points


@theme.in_both_modes
def plot_side_by_side(works: Mapping[str, Mapping[str, float]], *, unit: str, better: str = "more", first: str | None = None,
                      words: Mapping[str, Mapping[str, str]] | None = None, limit: float | None = None,
                      log: bool = False, title: str = "The same work, side by side", caption: str | None = None,
                      ax: Axes | None = None) -> Figure:
    """A group for each work, in it a bar for whoever did it.

    works: {work: {who: number}}; not all need to have done all. unit: of the numbers. better: "more" or "less". first: whose
    leads the caption counts, by default whoever comes first. words: what to write at a bar instead of its number. limit: a
    number that nobody can pass, drawn as a line. log: equal lengths are equal factors, from the power of ten below the least
    number on, for numbers of different orders. caption: instead of that count. Raises ValueError when somebody passes the
    limit, and with log for a number of 0 or less or a limit.
    """
    check(better in ("more", "less"), "better", better, "'more' or 'less'", "say which end is good")
    check(all(works.values()) and bool(works), "works", dict(works), "a number for each work", "leave out what nobody did")
    who = list(dict.fromkeys(name for row in works.values() for name in row))
    first = who[0] if first is None else first
    highest = max(value for row in works.values() for value in row.values())
    if limit is not None:
        check(highest <= limit * 1.02 if better == "more" else True, "a result", highest, f"at most limit={limit}",
              "count again, or the limit is not one")
    least = min(value for row in works.values() for value in row.values())
    check(not log or (least > 0 and limit is None), "a result on a logarithmic axis", least, "above 0, and no limit",
          "draw it with log=False")
    start = 10.0 ** (math.ceil(math.log10(least)) - 1) if log else 0.0  # below it, or a number like 0.1 had no bar
    count = sum(map(len, works.values()))
    fig, ax = theme.canvas(ax, 10, min(6.4, 1.6 + 0.25 * count + 0.16 * len(works)))
    m, y, middles = theme.mode(), 0.0, []
    end = start * (highest / start) ** 1.32 if log else max(highest * 1.32, (limit or 0) * 1.06)
    beside = max(theme.inches(work, 9) for work in works) + 0.1
    per_inch = end / max(1.0, fig.get_figwidth() - beside)  # of the axis
    for work, row in works.items():
        top = y
        for name, value in row.items():
            colour = theme.prompt_colour(0) if name == first else theme.decode_colour(who.index(name))
            ax.barh(y, value - start, 0.84, start, color=colour, gid=f"{name}-{work}")
            told = (words or {}).get(work, {}).get(name) or (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}")
            label, weight = f"{name}  {told}", "bold" if name == first else "normal"
            # A label that the limit would cross stands in its bar.
            inside = limit is not None and value <= limit <= value + theme.inches(label, SIZE, weight) * per_inch * 1.1
            ax.annotate(label, (value, y), (-5 if inside else 5, 0), textcoords="offset points", va="center", fontsize=SIZE,
                        ha="right" if inside else "left", fontweight=weight, parse_math=False,
                        color=theme.text_on(colour) if inside else m.ink)
            y -= 1.0
        middles.append((top + y + 1) / 2)
        y -= 0.65
    if limit is not None:
        ax.axvline(limit, color=m.ink, linewidth=1.1, linestyle=(0, (5, 3)), gid="limit", zorder=0 if better == "more" else 3)
    ax.set_yticks(middles, list(works), color=m.ink, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=f"{unit} ({better} is better{'; equal lengths are equal factors' if log else ''})", xlim=(start, end),
           ylim=(y + 1.1, 0.6))
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:,g}")
    rivalled = [row for row in works.values() if first in row and len(row) > 1]
    sign = 1 if better == "more" else -1
    led = sum(all(sign * row[first] > sign * row[name] for name in row if name != first) for row in rivalled)
    lead = f"Dark: {first}, ahead in {led} of {len(rivalled)}." if rivalled else f"{first} alone: nobody here to compare with."
    theme.title(ax, title, caption or lead + (" Dashed: the limit." if limit else ""))
    return fig
