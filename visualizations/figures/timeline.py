"""The request timeline: a Gantt chart of sequences against steps."""

from collections import Counter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nanovllm.tracing.trace import Trace
from visualizations import theme

BAR = 0.62
ROOM_FOR_NUMBER = 0.17  # inches of a row


@theme.in_both_modes
def plot_request_timeline(trace: Trace, *, ax: Axes | None = None) -> Figure:
    """A row a sequence, a column a step: waiting (thin line), prompt chunks (dark, with their length), decodes (light).

    A strike through a cell marks a preemption; the dot behind the last cell says that the sequence finished, and the number
    there how many tokens it generated in these steps.
    """
    ids = sorted({i for r in trace for i in (*(s["seq_id"] for s in r.scheduled), *r.waiting, *r.preempted)})
    rows = {seq_id: len(ids) - 1 - place for place, seq_id in enumerate(ids)}
    row = min(0.42, max(0.1, 5.5 / max(len(ids), 1)))  # inches
    fig, ax = theme.canvas(ax, 10, row * len(ids) + 1.5)
    m = theme.mode()
    few = len(trace) <= 45 and row > 0.3  # room for the number of tokens inside a cell
    # Cells touch, and their edges in the colour of the paper part them: edges are drawn on whole pixels, gaps would not be.
    drawn = Counter(seq_id for record in trace for seq_id in record.tokens)
    edge: dict[str, Any] = dict(edgecolor=m.paper, linewidth=0.9) if len(trace) <= 90 else dict(edgecolor="none")
    for record in trace:
        x = record.step
        ran = {s["seq_id"] for s in record.scheduled}
        for s in record.scheduled:
            y = rows[s["seq_id"]]
            colour = theme.phase_colour(s["seq_id"], s["phase"])
            ax.add_patch(Rectangle((x - 0.5, y - BAR / 2), 1, BAR, facecolor=colour, gid=f"{s['phase']}-{s['seq_id']}", **edge))
            if few and s["phase"] == "prefill":
                ax.text(x, y, str(s["num_tokens"]), ha="center", va="center", fontsize=8, color=theme.text_on(colour))
        for seq_id in record.waiting:
            if seq_id not in ran and seq_id not in record.preempted:
                ax.plot([x - 0.5, x + 0.5], [rows[seq_id]] * 2, color=m.muted, linewidth=1.4, gid=f"waiting-{seq_id}")
        for seq_id in record.preempted:
            y = rows[seq_id]
            ax.add_patch(Rectangle((x - 0.5, y - BAR / 2), 1, BAR, facecolor=m.paper, edgecolor=m.muted, linewidth=0.8))
            ax.plot([x - 0.46, x + 0.46], [y + BAR / 2, y - BAR / 2], color=m.ink, linewidth=2, gid=f"preempted-{seq_id}")
        for end in record.finished:
            ax.plot(x + 0.75, rows[end["seq_id"]], marker="o", markersize=5, color=theme.sequence_colour(end["seq_id"]),
                    gid=f"finished-{end['seq_id']}")
            if row > ROOM_FOR_NUMBER:
                ax.annotate(str(drawn[end["seq_id"]]), (x + 0.75, rows[end["seq_id"]]), (5, 0), textcoords="offset points",
                            va="center", fontsize=8, color=m.muted, annotation_clip=False, gid=f"generated-{end['seq_id']}")
    every = -(-len(ids) // round(row * len(ids) / 0.17)) if ids else 1  # room for the words
    ax.set_yticks([rows[i] for i in ids[::every]], [f"sequence {i}" for i in ids[::every]], color=m.ink)
    ax.set(xlabel="step", xlim=(trace[0].step - 0.7, trace[-1].step + 1.2 + 0.03 * len(trace)), ylim=(-0.6, len(ids) - 0.4))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    preemptions = sum(len(r.preempted) for r in trace)
    struck = f"struck box: preempted ({preemptions}); " if preemptions else ""
    numbered = ", and behind it the tokens generated" if row > ROOM_FOR_NUMBER else ""
    theme.title(ax, "Who ran when", "Dark: prompt chunks" + (" and their lengths" if few else "")
                + "; light: one token generated in each, and in the last dark one; line: waiting; "
                f"{struck}dot: the end{numbered}.")
    return fig
