"""Batch composition: how each step spends its token budget."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanovllm.tracing.trace import Trace
from visualizations import theme

MOST_PARTED = 90  # steps; with more, gaps are finer than a pixel and colours a flicker
# Of all sequences: dark prompt and light decodes on either paper, as a sequence's own shades are.
PROMPTS, DECODES = theme.LIGHT.muted, theme.mix(theme.LIGHT.muted, theme.LIGHT.paper, 0.55)


@theme.in_both_modes
def plot_batch_composition(trace: Trace, *, ax: Axes | None = None) -> Figure:
    """Tokens computed in each step, stacked by sequence, against the budget: dark prompt tokens, light decodes.

    Of a run with more steps than `MOST_PARTED` the sequences are not told apart, only prompt tokens and decodes.
    """
    fig, ax = theme.canvas(ax, 10, 2.9)
    m = theme.mode()
    if len(trace) <= MOST_PARTED:
        for record in trace:
            bottom = 0
            for s in record.scheduled:
                ax.bar(record.step, s["num_tokens"], 1.0, bottom, color=theme.phase_colour(s["seq_id"], s["phase"]),
                       edgecolor=m.paper, linewidth=0.9, gid=f"{s['phase']}-{s['seq_id']}")
                bottom += s["num_tokens"]
    else:
        at = [record.step for record in trace]
        decodes, prompts = ([getattr(record, f"num_{phase}_tokens") for record in trace] for phase in ("decode", "prefill"))
        for heights, below, shade, gid in ((decodes, [0] * len(at), DECODES, "decode"), (prompts, decodes, PROMPTS, "prefill")):
            ax.bar(at, heights, 1.0, below, color=shade, linewidth=0, gid=gid)
    budget = trace[0].token_budget
    ax.axhline(budget, color=m.ink, linewidth=1.1, linestyle=(0, (5, 3)), gid="budget")
    ax.annotate(f"budget: {budget} tokens", (1, budget), (-2, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="bottom", fontsize=9, color=m.ink)
    ax.set(xlabel="step", ylabel="tokens computed", xlim=(trace[0].step - 0.7, trace[-1].step + 0.7), ylim=(0, budget * 1.16))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    prefill, decode = (sum(getattr(r, f"num_{kind}_tokens") for r in trace) for kind in ("prefill", "decode"))
    steps, decoding = (sum(1 for r in trace if getattr(r, f"num_{kind}_tokens")) for kind in ("prefill", "decode"))
    theme.title(ax, "What each step computed", f"{prefill} prompt tokens (dark) fit in {steps} of {len(trace)} steps; "
                f"the {decode} tokens fed back (light) ride in {decoding} of them, often the same ones.")
    return fig
