"""Host and device side by side: which step each of them works on, and where the device waits."""

from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualizations import theme

LANES = ("device", "host")
THICK = 0.72


@theme.in_both_modes
def plot_overlap(runs: Mapping[str, Iterable[tuple[str, int, float, float]]], *, ax: Axes | None = None) -> Figure:
    """Two rows for each run: what the host does and what the device does, by time.

    runs: {name: (lane, step, start, end)}, lane "host" or "device", times in milliseconds. Steps of even and odd number
    have different colours, the same in both rows; hatched stretches of a device's row are those in which it waits.
    """
    runs = {name: sorted(spans, key=lambda span: span[2]) for name, spans in runs.items()}
    fig, ax = theme.canvas(ax, 10, 0.95 * len(runs) + 1.3)
    m = theme.mode()
    ticks, told = {}, []
    for place, (name, spans) in enumerate(runs.items()):
        floor = -2.5 * place
        busy = 0.0
        for row, lane in enumerate(LANES):
            y = floor + row
            ticks[y] = f"{name}: {lane}"
            last = None
            for _, step, start, end in (span for span in spans if span[0] == lane):
                if lane == "device" and last is not None and start > last + 1e-9:
                    ax.barh(y, start - last, THICK, last, facecolor=m.paper, edgecolor=m.muted, linewidth=0.4,
                            hatch=theme.WASTE_HATCH, gid="gap")
                busy += (end - start) * (lane == "device")
                colour = theme.prompt_colour(step % 2) if lane == "device" else theme.decode_colour(step % 2)
                ax.barh(y, end - start, THICK, start, color=colour, edgecolor=m.paper, linewidth=0.8, gid=f"{lane}-{step}")
                if end - start >= 0.012 * max(span[3] for span in spans):
                    ax.text((start + end) / 2, y, str(step), ha="center", va="center", fontsize=8, color=theme.text_on(colour))
                last = end
        whole = max(span[3] for span in spans)
        told.append(f"{name}, {whole:.0f} ms, device busy {busy / whole:.0%}")
    ax.set_yticks(list(ticks), list(ticks.values()), color=m.ink)
    ax.set(xlabel="milliseconds", xlim=(0, max(span[3] for spans in runs.values() for span in spans) * 1.01))
    theme.title(ax, "Whose turn it is", f"Numbers are steps; dotted: the device waits for the host ({'; '.join(told)}).")
    return fig
