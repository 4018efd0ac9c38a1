"""Which token went to which expert: a column per token, a row per expert."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanovllm.utils.checks import check
from visualizations import theme

Routing = list[dict[int, float]]  # for every token, the experts that it used and their weights


def record_routing(block: Any, run: Callable[[], object]) -> Routing:
    """What the router of `block` (a layer's `mlp` of a mixture of experts) chose for every token of one `run()`.

    A run of several steps gives the tokens of all, in the order in which they were computed. Raises ValueError when `run`
    never reaches the block.
    """
    from nanovllm.layers.moe import route

    found: Routing = []

    def hook(module: Any, inputs: Any, logits: Any) -> None:
        chosen = route(logits, block.num_active, block.normalize)
        for experts, weights in zip(*(part.tolist() for part in chosen), strict=True):
            found.append(dict(zip(experts, weights, strict=True)))

    handle = block.gate.register_forward_hook(hook)
    try:
        run()
    finally:
        handle.remove()
    check(bool(found), "tokens routed", 0, "one or more", "pass a layer's mlp of the model that runs, in its plain form")
    return found


@theme.in_both_modes
def plot_routing(routing: Routing, num_experts: int, *, tokens: Sequence[str] = (), title: str = "Who reads which token",
                 seq_id: int = 0, ax: Axes | None = None) -> Figure:
    """A square where a token went to an expert, the darker the more the expert's answer counted.

    routing: as `record_routing` gives it. tokens: the text of each, written under its column. Raises ValueError without
    routing, for an expert that there is not, or when tokens do not match.
    """
    check(bool(routing), "routing", routing, "what one token or more chose", "record it with record_routing")
    largest = max(max(choice) for choice in routing)
    check(largest < num_experts, "expert", largest, f"below num_experts={num_experts}", "pass the model's num_experts")
    check(not tokens or len(tokens) == len(routing), "tokens", len(tokens), f"{len(routing)}, one per token routed, or none",
          "pass the text of each token")
    height = min(6.0, 1.2 + 0.24 * num_experts + (0.5 if tokens else 0))
    fig, ax = theme.canvas(ax, min(12.0, 2.5 + 0.3 * len(routing)), height)
    m, used = theme.mode(), [0] * num_experts
    for column, choice in enumerate(routing):
        for expert, weight in choice.items():
            used[expert] += 1
            colour = theme.mix(m.free, theme.sequence_colour(seq_id), 0.2 + 0.8 * min(1.0, weight))
            ax.add_patch(Rectangle((column - 0.45, expert - 0.45), 0.9, 0.9, facecolor=colour, linewidth=0,
                                   gid=f"token-{column}-expert-{expert}"))
    ax.set(xlim=(-0.7, len(routing) - 0.3), ylim=(num_experts - 0.4, -0.6), ylabel="expert",
           xlabel="" if tokens else "position of the token")
    ax.set_yticks(range(0, num_experts, 1 if num_experts <= 16 else 8))
    if tokens:
        size = 9 if len(tokens) <= 24 else 7.5
        ax.set_xticks(range(len(tokens)), [repr(t)[1:-1].replace(" ", "·") for t in tokens], rotation=60, ha="right",
                      rotation_mode="anchor", color=m.ink, fontsize=size, parse_math=False)
    busiest, active = max(range(num_experts), key=used.__getitem__), max(len(choice) for choice in routing)
    idle = used.count(0)
    theme.title(ax, title, f"{active} of {num_experts} experts per token; expert {busiest} is asked most, by {used[busiest]} "
                f"of {len(routing)} tokens{f', and {idle} by none' if idle else ''}.")
    return fig
