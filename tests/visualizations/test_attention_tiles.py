"""plot_attention_mask with a grid of tiles, and its caption, which speaks only of what is there."""

import numpy as np
import pytest

import visualizations as v


def told(fig) -> str:
    return next(text.get_text() for text in fig.axes[0].texts if text.get_gid() == "caption")


@pytest.mark.parametrize(("queries", "context", "tile"), [(24, 24, 4), (5, 17, 4), (1, 9, 4), (6, 6, 8)])
def test_tiles_are_named_by_what_the_mask_holds(queries, context, tile):
    fig = v.plot_attention_mask([0, queries], [context], tile=tile)
    visible = np.tril(np.ones((queries, context), bool), context - queries)
    wanted = {"full": 0, "masked": 0, "skipped": 0}
    for row in range(0, queries, tile):
        for key in range(0, context, tile):
            part = visible[row:row + tile, key:key + tile]
            wanted["full" if part.all() else "masked" if part.any() else "skipped"] += 1
    drawn = [patch.get_gid() for patch in fig.axes[0].patches]
    assert {kind: drawn.count(f"tile-{kind}") for kind in wanted} == wanted
    assert not fig.axes[0].images  # the mask would show between the tiles
    assert told(fig).startswith(f"{wanted['full']} are read without a mask, {wanted['masked']} with one")


def test_the_caption_speaks_only_of_what_is_there():
    own = "each token's own key dark."
    alone, decodes = (told(v.plot_attention_mask(*step)).replace("\n", " ") for step in (([0, 5], [5]), ([0, 1, 2], [5, 7])))
    assert alone.endswith(f"are computed: a staircase for a prompt chunk, {own}")
    assert decodes.endswith(f"are computed: one row for a decode, nothing between sequences, {own}")
