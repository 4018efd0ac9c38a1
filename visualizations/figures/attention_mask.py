"""The attention mask of a mixed batch: all sequences in one row of tokens, and nobody sees a neighbour."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from nanovllm.utils.checks import check
from visualizations import theme


@theme.in_both_modes
def plot_attention_mask(cu_seqlens_q: ArrayLike, context_lens: ArrayLike, *, seq_ids: list[int] | None = None,
                        tile: int | None = None, ax: Axes | None = None) -> Figure:
    """Which keys each token of the step may read: a row a query token, a column a key, sequence after sequence.

    cu_seqlens_q: [num_seqs + 1], where each sequence's queries begin, from 0. context_lens: [num_seqs], its keys after
    this step, so that its queries are the last of them. Both as they stand in the step's `Context` (CPU tensors, arrays
    or lists). Strong: the token's own key; dark: read in a prompt chunk; light: read by a decode. tile: draw tiles of that
    many rows and keys in its place and mark of each whether it is read without a mask, read with one, or skipped.
    """
    starts, contexts = np.asarray(cu_seqlens_q, dtype=int), np.asarray(context_lens, dtype=int)
    queries = np.diff(starts)
    check(len(starts) == len(contexts) + 1, "len(cu_seqlens_q)", len(starts), f"{len(contexts) + 1}, one more than sequences",
          "pass the cu_seqlens_q and context_lens of one step")
    check(bool(np.all(queries >= 1) and np.all(queries <= contexts)), "queries of the sequences", queries.tolist(),
          f"1 to context_lens={contexts.tolist()} each", "a query's own key is among the keys")
    ids = seq_ids if seq_ids is not None else list(range(len(contexts)))
    keys = np.concatenate(([0], np.cumsum(contexts)))
    m = theme.mode()
    picture = np.empty((starts[-1], keys[-1], 3))
    picture[:] = theme.mix(m.paper, m.free, 0.55)
    for i, seq_id in enumerate(ids):
        dark, light = theme.prompt_colour(seq_id), theme.decode_colour(seq_id)
        shade = light if queries[i] == 1 else theme.mix(dark, m.paper, 0.35)
        for row in range(queries[i]):
            own = contexts[i] - queries[i] + row
            picture[starts[i] + row, keys[i]:keys[i] + own] = shade
            picture[starts[i] + row, keys[i] + own] = dark
    fig, ax = theme.canvas(ax, 10, min(4.9, max(2.6, 10 * starts[-1] / keys[-1] * 0.9 + 1.5)))
    if tile is None:  # under tiles the mask would show in the gaps between them
        ax.imshow(picture, interpolation="nearest", extent=(0, keys[-1], starts[-1], 0), aspect="auto", gid="mask")
    for i in range(len(ids) if tile is None else 0):
        ax.add_patch(Rectangle((keys[i], starts[i]), contexts[i], queries[i], facecolor="none", linewidth=1.1,
                               edgecolor=theme.sequence_colour(ids[i]), gid=f"sequence-{ids[i]}"))
        if seq_ids is not None:  # below its box, the last one's within it
            last = i == len(ids) - 1
            ax.annotate(f"sequence {ids[i]}", (keys[i], starts[i + 1]), (4, 3 if last else -3), textcoords="offset points",
                        va="bottom" if last else "top", fontsize=8.5, color=m.ink)
    ax.set_yticks(starts, [str(s) for s in starts])
    ax.set_xticks(keys, [str(k) for k in keys])
    ax.set(xlabel="keys in the cache, all sequences end to end (ticks: where each begins)",
           ylabel="query tokens (ticks: cu_seqlens_q)", xlim=(0, keys[-1]), ylim=(starts[-1], 0))
    if tile is not None:
        _mark_tiles(ax, starts, contexts, keys, tile)
        return fig
    read = sum(int(contexts[i] * queries[i] - queries[i] * (queries[i] - 1) // 2) for i in range(len(ids)))
    theme.title(ax, "Who may read what, in one step",
                f"{read} of {starts[-1] * keys[-1]} pairs are computed: {', '.join(_occurring(queries.tolist()))}.")
    return fig


def _occurring(queries: list[int]) -> list[str]:
    """What there is to see in this step, for the caption: it must not speak of rows that are not there."""
    seen = {"a staircase for a prompt chunk": any(n > 1 for n in queries), "one row for a decode": 1 in queries,
            "nothing between sequences": len(queries) > 1,
            "each token's own key dark": True}
    return [words for words, there in seen.items() if there]


def _mark_tiles(ax: Axes, starts: NDArray[Any], contexts: NDArray[Any], keys: NDArray[Any],
                tile: int) -> None:
    """Outline the tiles of each sequence by what a kernel does with them."""
    counts, m = {"full": 0, "masked": 0, "skipped": 0}, theme.mode()
    looks = {"full": (theme.HUES[0], ""), "masked": (theme.HUES[1], ""), "skipped": (m.line, "...")}
    for i in range(len(contexts)):
        queries = int(starts[i + 1] - starts[i])
        before = int(contexts[i]) - queries
        for row in range(0, queries, tile):
            last_row = min(row + tile, queries) - 1
            for key in range(0, int(contexts[i]), tile):
                last_key = min(key + tile, int(contexts[i])) - 1
                kind = "skipped" if key > before + last_row else "full" if last_key <= before + row else "masked"
                counts[kind] += 1
                colour, hatch = looks[kind]
                ax.add_patch(Rectangle((keys[i] + key + 0.08, starts[i] + row + 0.08), last_key - key + 0.84,
                                       last_row - row + 0.84, facecolor=theme.mix(colour, m.paper, 0.45) if kind != "skipped"
                                       else m.paper, edgecolor=colour, hatch=hatch, linewidth=1.6, gid=f"tile-{kind}"))
                if kind != "skipped":
                    ax.text(keys[i] + (key + last_key + 1) / 2, starts[i] + (row + last_row + 1) / 2, kind, ha="center",
                            va="center", fontsize=9, color=m.ink)
    theme.title(ax, f"Tiles of {tile} queries and {tile} keys", f"{counts['full']} are read without a mask, {counts['masked']} "
                f"with one, and {counts['skipped']} (dotted) are never touched.")
