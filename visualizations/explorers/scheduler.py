"""SchedulerExplorer: continuous batching, watched or driven step by step."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanovllm.utils.counted import counted
from visualizations import theme
from visualizations.explorers.run_explorer import RunExplorer

MOST_STEPS_WITH_GUESSES = 40  # in the still: in a longer run a cell has no room for them
LOWEST_BAR = 0.03  # of the axis: a step of one token is seen beside a budget of many
OUT_OF_REACH = 8  # times the tokens of the fullest step: a budget above is named in the caption instead of drawn


class SchedulerExplorer(RunExplorer):
    """Requests against steps, queues, token budget, the blocks of the cache, and the reason for every decision.

        SchedulerExplorer(llm.trace_of_something)                  # replay a Trace
        SchedulerExplorer(Simulation(num_blocks=16))               # drive the scheduler alone, with made-up tokens
        SchedulerExplorer(scheduler)                               # the same, around a Scheduler of your own
        SchedulerExplorer(llm)                                     # drive a live engine, from where it is

    A live source can be stepped, run, given requests, have them aborted, and its budget changed; a simulation also the
    size of its cache, which serves the same requests again, and it can be rewound. Going back shows recorded steps.

    source: the live thing or recording as an object, to be looked at from other cells. Raises ValueError for other things.
    """

    module = "scheduler.js"

    def __init__(self, source: Any, *, step: int = 0, label: str = "Continuous batching, step by step",
                 follow: bool = False) -> None:
        super().__init__(source, label=label, step=step, follow=follow)

    def summary(self) -> str:
        requests = len(self.source.trace.meta.get("prompts", {}))
        return (f"{self.label}: {self.source.trace!r} of {counted(requests, 'request')}. Run this cell in JupyterLab to scrub "
                "through it.")

    def figure(self) -> Figure:
        """Who ran when, over the whole run, and below it how each step spent the budget."""
        trace = self.source.trace
        ids = sorted({*trace.meta.get("prompts", {}), *(i for r in trace for i in (*r.running, *r.waiting))})
        rows = {seq_id: len(ids) - 1 - place for place, seq_id in enumerate(ids)}
        height = min(max(0.24 * len(ids), 1.2), 4.2)
        fig, chart = theme.canvas(None, 10, height + 2.2)
        chart.remove()
        chart, budget = fig.subplots(2, 1, sharex=True, height_ratios=[height, 1.1])
        for ax in (chart, budget):
            theme.canvas(ax, 0, 0)
        m = theme.mode()
        thick = 0.74
        # Cells touch, and edges in the colour of the paper part them: edges are drawn on whole pixels, gaps would not be.
        edge: dict[str, Any] = dict(edgecolor=m.paper, linewidth=0.9) if len(trace) <= 120 else {}
        for seq_id, row in rows.items():
            for phase in ("prefill", "decode"):
                spans = [(r.step - 0.5, 1.0) for r in trace
                         if any(s["seq_id"] == seq_id and s["phase"] == phase for s in r.scheduled)]
                chart.broken_barh(spans, (row - thick / 2, thick), facecolor=theme.phase_colour(seq_id, phase), **edge)
            waits = [r.step for r in trace if seq_id in r.waiting and seq_id not in r.preempted]
            chart.hlines([row] * len(waits), [x - 0.5 for x in waits], [x + 0.5 for x in waits], color=m.muted, linewidth=1.1)
            struck = [r.step for r in trace if seq_id in r.preempted]
            for colour, width in ((m.paper, 5.0), (m.ink, 2.4)):  # on a rim of paper, since a cell may be darker than ink
                chart.plot(struck, [row] * len(struck), marker=(2, 0, 40), linestyle="none", color=colour, markersize=15,
                           markeredgewidth=width)
        guesses = self._draw_guesses(chart, rows)
        steps = [r.step for r in trace]
        prompt, decode = ([getattr(r, f"num_{kind}_tokens") for r in trace] for kind in ("prefill", "decode"))
        most, limit = max(map(sum, zip(decode, prompt, strict=True)), default=0), trace.meta["token_budget"]
        reached = not most or limit <= OUT_OF_REACH * most
        least = LOWEST_BAR * max(most, limit if reached else 0)
        budget.bar(steps, [max(num, least) if num else 0 for num in decode], 1.0, color=theme.mix(m.muted, m.paper, 0.55),
                   label="decode")
        budget.bar(steps, prompt, 1.0, decode, color=m.muted, label="prompt")
        if edge:  # upright ones alone: all four would cover a bar of one token
            for x, num in zip(steps, map(sum, zip(decode, prompt, strict=True)), strict=True):
                budget.vlines([x - 0.5, x + 0.5], 0, max(num, least), color=m.paper, linewidth=0.9)
        if reached:
            budget.axhline(limit, color=m.ink, linewidth=1, linestyle=(0, (5, 3)))
        budget.set(xlabel="step", ylabel="tokens", xlim=(steps[0] - 0.7, steps[-1] + 0.7) if steps else (-0.7, 0.7))
        chart.set(ylabel="sequence", ylim=(-0.7, max(len(ids), 1) - 0.3))
        every = max(1, len(ids) // 12)
        chart.set_yticks([rows[i] for i in ids[::every]], [str(i) for i in ids[::every]])
        budget.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        spent = "against its token budget (dashed)" if reached else f"and its tokens, of a budget of {limit:,}"
        theme.title(chart, self.label, f"Dark: prompt; light: generated; line: waiting; strike: preempted.{guesses} Below, "
                    f"each step {spent}.")
        return fig

    def _draw_guesses(self, chart: Axes, rows: dict[int, int]) -> str:
        """A dot for each guess that was kept and a cross for each refused one, in its step's cell; returns words about them."""
        drawn = False
        if len(self.source.trace) > MOST_STEPS_WITH_GUESSES:
            return ""
        for r in self.source.trace:
            for seq_id, drafts in r.drafts.items():
                kept = r.accepted.get(seq_id, 0)
                for i in range(len(drafts)):
                    x = r.step + 0.2 * (i - (len(drafts) - 1) / 2)
                    chart.plot(x, rows[seq_id], marker="o" if i < kept else "x", markersize=2.6 if i < kept else 3.6,
                               color="#1b1e22", markeredgewidth=1, linestyle="none", gid="kept" if i < kept else "refused")
                    drawn = True
        return " Dots are guesses that were kept, crosses refused ones." if drawn else ""
