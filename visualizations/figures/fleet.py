"""A fleet over time: how many requests each replica had, and how much of its prompts it found cached."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.fleet.fleet_report import FleetReport
from nanovllm.utils.checks import check
from visualizations import theme

HEAD = 1.5  # rows above each run, for its name


@theme.in_both_modes
def plot_fleet(runs: Mapping[str, FleetReport], *, what: str = "unfinished", title: str = "Requests of each replica",
               ax: Axes | None = None) -> Figure:
    """Replicas against time for each run, one below the other on one time axis and one scale.

    what: "unfinished" requests (waiting and running) or "waiting" ones. Raises ValueError for another, or without runs.
    """
    check(bool(runs), "runs", dict(runs), "at least one report", "run a SimulatedFleet")
    check(what in ("unfinished", "waiting"), "what", what, "'unfinished' or 'waiting'", "choose one of them")
    num_rows = [report.config.num_replicas for report in runs.values()]
    row = min(0.26, 4.2 / sum(num_rows))
    fig, ax = theme.canvas(ax, 9, row * sum(num_rows) + 0.3 * len(runs) + 1.2)
    m = theme.mode()
    shades = LinearSegmentedColormap.from_list("load", [m.free, theme.HUES[0] if m is theme.LIGHT else "#6cb4ee"])
    keys = ("running", "waiting") if what == "unfinished" else ("waiting",)
    values = {name: np.sum([report.timeline.of(key) for key in keys], axis=0) for name, report in runs.items()}
    highest = max(1.0, max(float(np.max(v, initial=0)) for v in values.values()))
    end = max(report.timeline.width * report.timeline.num_intervals for report in runs.values())
    head = HEAD * 0.2 / row
    y, ticks = 0.0, []
    for name, report in runs.items():
        count, line = report.config.num_replicas, report.timeline
        ax.text(0, y + head * 0.5, name, color=m.ink, fontsize=10, fontweight="bold", va="center", parse_math=False)
        most = np.max(values[name], initial=0)
        ax.text(end, y + head * 0.5, f"at most {most:.0f} at a time; {report.hit_rate:.0%} found cached; "
                f"TTFT {report.ttft(50) * 1e3:.0f} ms, p99 {report.ttft(99) * 1e3:.0f} ms", color=m.muted, fontsize=9,
                va="center", ha="right")
        y += head
        ax.add_patch(Rectangle((0, y), end, count, facecolor=m.free, edgecolor="none", zorder=0))
        ax.imshow(values[name], aspect="auto", cmap=shades, vmin=0, vmax=highest, interpolation="nearest", gid=f"load-{name}",
                  extent=(0, line.width * line.num_intervals, y + count, y))
        every = max(1, count // 8)
        ticks += [(y + i + 0.5, str(i)) for i in range(0, count, every)]
        ax.hlines([y + i for i in range(1, count)], 0, end, color=m.paper, linewidth=1.2 if row > 0.12 else 0.4)
        y += count
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    ax.set(xlabel="seconds since the run began", ylabel="replica", xlim=(0, end), ylim=(y, 0), aspect="auto")
    theme.title(ax, title, f"Grey to blue: none to {highest:.0f} {what} requests.")
    return fig
