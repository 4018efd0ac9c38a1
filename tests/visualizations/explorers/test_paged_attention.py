"""PagedAttentionExplorer: the scores it takes from a scattered cache, the walk that the browser does, and what it refuses."""

import json

import numpy as np
import pytest

from tests.visualizations.explorers.node import node_test
from visualizations import PagedAttentionExplorer
from visualizations.explorers.base import unpack

TABLE = [5, 0, 3]


def cache(length: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A query, and a cache of six blocks of four slots, never written outside of TABLE's first `length` tokens."""
    draw = np.random.default_rng(1)
    q, k, v = draw.normal(size=3), np.full((6, 4, 3), np.nan), np.full((6, 4, 3), np.nan)
    for position in range(length):
        k[TABLE[position // 4], position % 4], v[TABLE[position // 4], position % 4] = draw.normal(size=(2, 3))
    return q, k, v


def test_gathers_scores_and_values_in_the_order_of_the_table():
    q, k, v = cache()
    explorer = PagedAttentionExplorer(q, k, v, block_table=[*TABLE, 2], length=10, scale=0.5, num_prompt=6, owners={1: 7, 5: 2})
    data = unpack(explorer.payload)
    rows = [(TABLE[p // 4], p % 4) for p in range(10)]
    assert data["scores"] == pytest.approx([0.5 * float(k[row] @ q) for row in rows], abs=1e-4)
    assert np.allclose(data["values"], [v[row] for row in rows], atol=1e-4)
    assert data["block_table"] == TABLE and data["num_blocks"] == 6 and data["num_prompt"] == 6
    assert data["owners"] == {"1": 7}  # block 5 is the sequence's own
    assert "10 keys in blocks 5, 0, 3" in explorer.summary() and explorer.figure().axes


@pytest.mark.parametrize(("change", "match"), [
    ({"length": 13}, "length=13: must be 1 to 12"), ({"length": 0}, "length=0"), ({"block_table": [5, 0, 6]}, "block_table="),
    ({"words": ["one"]}, r"len\(words\)=1"), ({"q": [1.0, 2.0]}, "shapes of q"), ({"length": 11}, "not finite")])
def test_refuses_what_is_no_query_of_this_cache(change, match):
    q, k, v = cache()
    given = {"q": q, "k_cache": k, "v_cache": v, "block_table": TABLE, "length": 10, "scale": 1.0} | change
    with pytest.raises(ValueError, match=match):
        PagedAttentionExplorer(**given)


def test_the_walk_ends_at_the_softmax_over_the_gathered_keys():
    q, k, v = cache()
    data = unpack(PagedAttentionExplorer(q, k, v, block_table=TABLE, length=10, scale=0.5).payload)
    weights = np.exp(data["scores"] - np.max(data["scores"]))
    right = weights @ np.array(data["values"]) / weights.sum()
    node_test("paged_attention.js", f"""
const data = {json.dumps(data)}, right = {json.dumps(right.tolist())}, all = js.walk(data);
test("a step per block, in the table's order", () => {{
  assert.deepEqual(all.map((state) => state.block), [null, 5, 0, 3]);
  assert.deepEqual(all.map((state) => state.to), [0, 4, 8, 10]);
  right.forEach((number, d) => assert.ok(Math.abs(all[3].acc[d] / all[3].total - number) < 1e-12));
}});
test("the strongest key so far is softmax's, among those that were read", () => {{
  assert.equal(js.strongest(data.scores, all[0]), null);
  for (const state of all.slice(1)) {{
    const read = data.scores.slice(0, state.to), {{ key, share }} = js.strongest(data.scores, state);
    assert.equal(read[key], Math.max(...read));
    assert.ok(Math.abs(share - 1 / read.reduce((sum, score) => sum + Math.exp(score - read[key]), 0)) < 1e-12);
  }}
}});
test("the sentences name block, slots, rescaling and the end", () => {{
  assert.match(js.tellBlock(data, all, 0), /Nothing has been read/);
  const third = js.tellBlock(data, all, 3);
  assert.match(js.tellBlock(data, all, 1), /Entry 0 of the table says block 5: 4 keys are read, from slots 20 to 23\\.$/);
  assert.match(third, /block 3: 2 keys are read, from slots 12 to 13\\. The other 2 slots of the block lie behind/);
  assert.match(third, /That was the last block/);
  const rising = {{ scores: [0, 1, 1], values: [[1], [1], [1]], block_table: [2, 1, 0], block_size: 1 }};
  const steps = js.walk(rising), second = js.tellBlock(rising, steps, 2);
  assert.match(second, /1 key is read, from slot 1\\. A higher score is among them: .* multiplied by 0\\.368/);
  assert.match(js.tellBlock(rising, steps, 3), /No higher score/);
}});
test("a cache of any size fits", () => {{
  for (const blocks of [1, 40, 256, 3000])
    for (const width of [420, 674, 1300]) {{
      const {{ pitch, columns, height }} = js.squares(blocks, width, 130);
      assert.ok(pitch * columns <= width && columns * height / pitch >= blocks && (height <= 130 || pitch === 10));
    }}
}});
""")
