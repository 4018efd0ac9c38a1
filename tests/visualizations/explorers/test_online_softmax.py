"""OnlineSoftmaxExplorer: what it packs, the arithmetic that the browser does, and what it refuses."""

import numpy as np
import pytest

from tests.visualizations.explorers.node import node_test
from visualizations import OnlineSoftmaxExplorer
from visualizations.explorers.base import unpack


def test_packs_scores_values_and_the_sizes_of_a_tile():
    data = unpack(OnlineSoftmaxExplorer([0.5, 2, -1], 2, values=[1, 2, 3]).payload)
    assert data == {"scores": [0.5, 2.0, -1.0], "values": [1.0, 2.0, 3.0], "tile": 2, "sizes": [1, 2, 3]}
    assert unpack(OnlineSoftmaxExplorer([1.0], 8).payload)["sizes"] == [1]


@pytest.mark.parametrize(("scores", "tile", "values", "match"), [
    ([], 4, None, "scores="), ([0.0, float("-inf")], 4, None, "finite"), ([1.0], 0, None, "tile=0"),
    ([1.0, 2.0], 1, [1.0], "len\\(values\\)=1")])
def test_refuses_what_is_no_query(scores, tile, values, match):
    with pytest.raises(ValueError, match=match):
        OnlineSoftmaxExplorer(scores, tile, values=values)


def test_the_still_picture_and_the_words_say_the_same():
    explorer = OnlineSoftmaxExplorer(np.linspace(0, 3, 16), 4)
    assert "16 keys in tiles of 4" in explorer.summary() and explorer.figure().axes


def test_every_tile_size_and_order_ends_at_softmax():
    node_test("online_softmax.js", """
const scores = [1.0, 0.3, -1, 0.8, 95, 1.9, 94, 0.5], values = [1, -2, 3, 0.5, 2, 4, -1, 0].map((value) => [value, 2 - value]);
test("states", () => {
  const right = js.whole(scores, values);
  for (const order of ["as they come", "highest first", "lowest first"])
    for (const tile of [1, 2, 3, 8]) {
      const keys = js.arrival(scores, order), all = js.states(scores, values, keys, tile), last = all.at(-1);
      assert.equal(all.length, Math.ceil(8 / tile) + 1);
      assert.deepEqual([...keys].sort((a, b) => a - b), [0, 1, 2, 3, 4, 5, 6, 7]);
      right.forEach((number, d) => assert.ok(Math.abs(last.acc[d] / last.total - number) < 1e-9, `${order} ${tile}`));
      if (order === "highest first") assert.ok(all.every((s) => s.rescale === 1));
    }
});
test("a higher score rescales what was summed, and the sentence says so", () => {
  const all = js.states([0, 1], [[1], [1]], [0, 1], 1);
  assert.ok(Math.abs(all[2].rescale - Math.exp(-1)) < 1e-12 && Math.abs(all[2].total - 1 - Math.exp(-1)) < 1e-12);
  assert.match(js.tellStep(all, 2), /multiplied by .* = 0\\.368/);
  assert.match(js.tellStep(js.states([1, 0], [[1], [1]], [0, 1], 1), 2), /No higher score/);
  assert.match(js.tellStep(all, 0), /Nothing has been read/);
});
""")
