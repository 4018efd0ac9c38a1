"""The life bar of one request: how far the cache has followed its tokens, step by step."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanovllm.tracing.trace import Trace
from visualizations import theme


@theme.in_both_modes
def plot_life_of_request(trace: Trace, seq_id: int, *, room: int | None = None, ax: Axes | None = None) -> Figure:
    """A bar a step, tokens upwards: pale what the cache held before, dark or light what this step computed, and an
    outline for tokens that are there but not computed. A strike marks a preemption. room: tokens that the cache holds, a line.
    """
    fig, ax = theme.canvas(ax, 10, 3.2)
    m = theme.mode()
    num_tokens = num_prompt = trace.meta["prompts"][seq_id]
    tallest = num_tokens
    for record in trace:
        mine = next((s for s in record.scheduled if s["seq_id"] == seq_id), None)
        start, length = (mine["start"], mine["num_tokens"]) if mine else (0, 0)
        waiting = seq_id in record.waiting or seq_id in record.preempted
        if not (mine or waiting):
            continue
        ax.bar(record.step, num_tokens, 0.8, color="none", edgecolor=m.line, linewidth=1, gid="tokens")
        ax.bar(record.step, start, 0.8, color=theme.mix(theme.prompt_colour(seq_id), m.paper, 0.8), gid="held")
        if mine:
            ax.bar(record.step, length, 0.8, start, color=theme.phase_colour(seq_id, mine["phase"]), gid=f"{mine['phase']}")
        if seq_id in record.preempted:
            ax.plot([record.step - 0.4, record.step + 0.4], [num_tokens, 0], color=m.ink, linewidth=1.6, gid="preempted")
        num_tokens += (seq_id in record.tokens) + record.accepted.get(seq_id, 0)
        tallest = max(tallest, num_tokens)
    for tokens, words in ((num_prompt, "prompt ends"), (room, "the cache is full")):
        if tokens is not None:
            ax.axhline(tokens, color=m.muted, linewidth=0.9, linestyle=(0, (4, 3)))
            ax.annotate(words, (0, tokens), (3, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                        fontsize=8.5, color=m.muted)
    tallest = max(tallest, room or 0)
    ax.set(xlabel="step", ylabel="tokens", xlim=(trace[0].step - 0.7, trace[-1].step + 0.7), ylim=(0, tallest * 1.12))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    lost = sum(seq_id in r.preempted for r in trace)
    theme.title(ax, f"The life of sequence {seq_id}", "Pale: in the cache already; strong: computed in this step; empty: "
                "still to do" + (f"; struck: preempted ({lost})." if lost else "."))
    return fig
