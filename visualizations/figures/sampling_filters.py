"""Sampling filters: the distribution before and after each of them."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nanovllm.sampling_params import SamplingParams
from visualizations import theme


def sampling_stages(logits: ArrayLike, params: SamplingParams) -> dict[str, np.ndarray]:
    """The distribution after each filter that `params` asks for, in the order the sampler applies them, by its own code.

    logits: [vocab_size], a tensor, array or list. Returns {name of the stage: probabilities [vocab_size]}.
    Raises ValueError for greedy parameters, which draw from no distribution.
    """
    import torch

    from nanovllm.layers.sampler import Filters, filter_logits
    from nanovllm.utils.checks import check

    check(not params.greedy, "temperature", params.temperature, "above 0", "a greedy request draws from no distribution")
    scores = torch.as_tensor(logits).detach().float().reshape(1, -1).cpu()
    stages = {"the model's own": scores}
    if params.temperature != 1:
        scores = stages[f"temperature {params.temperature:g}"] = scores / params.temperature
    for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        value = getattr(params, name)
        if value not in (off, -1):
            dtype = torch.int64 if name == "top_k" else torch.float32
            filters = Filters(torch.zeros(1, dtype=torch.int64), **{name: torch.tensor([[value]], dtype=dtype)})
            scores = stages[f"{name} {value:g}"] = filter_logits(scores, filters)
    return {name: s.softmax(-1)[0].numpy() for name, s in stages.items()}


@theme.in_both_modes
def plot_sampling_filters(stages: dict[str, np.ndarray], decode: Callable[[int], str] | None = None, *, top: int = 24,
                          seq_id: int = 0, ax: Axes | None = None) -> Figure:
    """A row of bars for each stage, over the `top` tokens that the first one finds most likely.

    stages: {name: probabilities [vocab_size]}, see `sampling_stages`. decode: token id -> its text, for the axis. Bars of
    a row share one scale with all rows; a cross marks a token that a filter took out.
    """
    names = list(stages)
    values = [np.asarray(p, dtype=float) for p in stages.values()]
    ids = np.argsort(-values[0], kind="stable")[:top].tolist()
    fig, ax = theme.canvas(ax, 10, 0.92 * len(names) + 1.6)
    m = theme.mode()
    tallest = max(p[ids].max() for p in values)
    for row, p in enumerate(values):
        floor = len(names) - 1 - row
        ax.axhline(floor, color=m.line, linewidth=0.9)
        before = values[row - 1] if row else p
        for x, token in enumerate(ids):
            if p[token] > 0:
                ax.bar(x, 0.78 * p[token] / tallest, 0.78, floor, color=theme.prompt_colour(seq_id), gid=f"kept-{row}")
            else:
                fresh = before[token] > 0
                ax.plot(x, floor + 0.09, marker="x", markersize=5, markeredgewidth=1.6 if fresh else 1.0,
                        color=m.ink if fresh else m.line, gid=f"{'dropped' if fresh else 'gone'}-{row}")
        outside = p.sum() - p[ids].sum()
        ax.text(len(ids) - 0.3, floor + 0.32, f"{np.count_nonzero(p)} tokens left\nmost likely {p.max():.2f}\n"
                f"not shown {max(outside, 0):.2f}", fontsize=8.5, va="center", color=m.muted, linespacing=1.35)
    ax.set_yticks([len(names) - 1 - i + 0.3 for i in range(len(names))], names, color=m.ink)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    labels = [_label(decode(t)) if decode else str(t) for t in ids]
    ax.set_xticks(range(len(ids)), labels, rotation=60, ha="right", rotation_mode="anchor", parse_math=False, fontsize=8.5,
                  family="DejaVu Sans Mono")
    ax.set(xlabel="tokens, the most likely first", xlim=(-0.7, len(ids) + 3.6), ylim=(-0.06, len(names) - 0.12))
    kept = np.count_nonzero(values[-1])
    theme.title(ax, "What each filter leaves", f"A cross: taken out here. Of {len(values[0])} tokens {kept} can still be "
                "drawn, and share what the others lost.")
    return fig


def _label(text: str, longest: int = 9) -> str:
    label = repr(text)[1:-1]
    return label if len(label) <= longest else label[: longest - 1] + "…"
