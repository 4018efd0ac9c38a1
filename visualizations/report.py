"""A recorded run as one page: figures and explorers with everything inside, to be read without kernel or network."""

import base64
import io
from collections.abc import Callable
from html import escape

import numpy as np
from matplotlib.figure import Figure

from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check
from visualizations import theme
from visualizations.explorers.base import Explorer, page_parts
from visualizations.explorers.block_table import BlockTableExplorer
from visualizations.explorers.graph_timeline import GraphTimelineExplorer
from visualizations.explorers.scheduler import SchedulerExplorer
from visualizations.figures.batch_composition import plot_batch_composition
from visualizations.figures.cache_occupancy import plot_cache_occupancy
from visualizations.figures.gpu_timeline import operations_of
from visualizations.figures.latency import plot_latencies, trace_latencies
from visualizations.figures.timeline import plot_request_timeline

STEPS = 200  # shown, unless others are asked for: what explorers draw within a frame, and figures can be read at
DPI = 110
MODES = {"light": theme.LIGHT, "dark": theme.DARK}
STYLE = """:root { color-scheme: light dark; --paper: LIGHT_PAPER; --ink: LIGHT_INK; --muted: LIGHT_MUTED; --line: LIGHT_LINE; }
@media (prefers-color-scheme: dark) { :root { --paper: DARK_PAPER; --ink: DARK_INK; --muted: DARK_MUTED; --line: DARK_LINE; } }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 1400px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 4px; font-size: 24px; } h2 { margin: 34px 0 6px; font-size: 18px; }
.words { margin: 0 0 10px; max-width: 76ch; color: var(--muted); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 12px 24px; margin: 18px 0; }
.facts dt { color: var(--muted); font-size: 13px; }
.facts dd { margin: 0; font-size: 19px; font-variant-numeric: tabular-nums; }
figure { margin: 34px 0 0; } figure img { display: block; max-width: 100%; height: auto; }
"""


def report_html(trace: Trace, title: str = "A recorded run", steps: slice | None = None) -> str:
    """The page. steps: which records the explorers and figures show; None is the first STEPS of them.

    The numbers at the top, and the latencies, are always those of the whole run. Raises ValueError for a trace, or a choice
    of steps, without any record.
    """
    check(len(trace) > 0, "trace", trace, "at least one step", "record one with LLM.trace()")
    window = trace[steps or slice(STEPS)]
    check(len(window) > 0, "steps", steps, f"some of the {len(trace)} recorded ones", "choose others")
    sections: list[tuple[str, str, Explorer | Callable[[], Figure]]] = [
               ("Who ran when, and why", "Step through the run or play it; click, or press up and down, to choose a sequence.",
                 SchedulerExplorer(window)),
                ("Where every token lies", "Choose a token: the block table leads to the slot that holds its key and value.",
                 BlockTableExplorer(window)),
                ("Each request's life", "", lambda: plot_request_timeline(window)),
                ("What each step computed", "", lambda: plot_batch_composition(window)),
                ("The cache", "", lambda: plot_cache_occupancy(window))]
    latencies = {name: seconds for name, seconds in trace_latencies(trace).items() if seconds}
    if latencies:
        sections.append(("How long readers wait", "", lambda: plot_latencies(latencies)))
    phased = [i for i, record in enumerate(window) if trace.operations and record.phases]
    if profiled := [i for i in phased if operations_of(window, window[i])[1]]:
        middle = profiled[len(profiled) // 2]
        sections.append(("One step on the machine", f"Step {window[middle].step}, with what the profiler saw in it.",
                         GraphTimelineExplorer({f"step {window[middle].step}": (window, middle)})))
    return _page(title, _note(trace, window), _facts(trace), sections)


def _page(title: str, note: str, facts: dict[str, str],
          sections: list[tuple[str, str, Explorer | Callable[[], Figure]]]) -> str:
    explorers = [thing for *_, thing in sections if isinstance(thing, Explorer)]
    head, views, tail = page_parts(explorers)
    places = iter(views)
    body = "".join(f'<h2>{escape(name)}</h2>\n<p class="words">{escape(says)}</p>\n{next(places)}'
                   if isinstance(thing, Explorer) else _figure(thing, name) for name, says, thing in sections)
    table = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<style>{_style()}</style></head>\n<body><h1>{escape(title)}</h1>\n"
            f'<p class="words">{escape(note)}</p>\n<dl class="facts">{table}</dl>\n'
            f"{head}{body}{tail}</body></html>\n")


def _style() -> str:
    text = STYLE
    for name, mode in MODES.items():
        for part in ("paper", "ink", "muted", "line"):
            text = text.replace(f"{name.upper()}_{part.upper()}", getattr(mode, part))
    return text


def _figure(draw: Callable[[], Figure], name: str) -> str:
    """The figure in both modes; the browser shows the one that the reader's system asks for."""
    pictures = {}
    for mode, colours in MODES.items():
        with theme.using(colours):
            out = io.BytesIO()
            figure = draw()
            figure.savefig(out, format="png", dpi=DPI)
        pictures[mode] = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    width = round(figure.get_figwidth() * 100)
    caption = next((text.get_text() for ax in figure.axes for text in ax.texts if text.get_gid() == "caption"), "")
    return (f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{pictures["dark"]}">'
            f'<img width="{width}" src="{pictures["light"]}" alt="{escape(f"{name}. {caption}")}"></picture></figure>')


def _note(trace: Trace, window: Trace) -> str:
    shown = f"steps {window[0].step} to {window[-1].step}"
    return (f"nanovllm, model {trace.meta.get('model', 'unknown')}. " +
            ("The pictures show the whole run." if len(window) == len(trace) else
             f"The pictures show {shown} of {len(trace)}; --steps chooses others. The numbers are those of the whole run."))


def _facts(trace: Trace) -> dict[str, str]:
    """What the whole run did, in one pass over its pages."""
    prompt = drawn = hits = preemptions = most = 0
    ended: set[int] = set()
    for record in trace:
        prompt += record.num_prefill_tokens
        drawn += record.num_new_tokens
        hits += sum(record.hit_tokens.values())
        preemptions += len(record.preempted)
        most = max(most, record.num_blocks_in_use)
        ended |= {end["seq_id"] for end in record.finished}
        last = record
    seconds = last.time + last.duration - trace[0].time
    first_token = trace_latencies(trace)
    medians = {name: f"{1000 * np.median(values):,.1f} ms" for name, values in first_token.items() if len(values)}
    return {"requests ended": f"{len(ended):,}", "steps": f"{len(trace):,}", "time": f"{seconds:,.2f} s",
            "tokens generated": f"{drawn:,}", "generated per second": f"{drawn / max(seconds, 1e-9):,.0f}",
            "prompt tokens computed": f"{prompt:,}", "found in the prefix cache": f"{hits:,}",
            "preemptions": f"{preemptions:,}",
            "most blocks held": f"{most:,} of {trace.meta.get('num_blocks', len(last.blocks)):,}",
            **{f"{name}, median": value for name, value in medians.items()}}
