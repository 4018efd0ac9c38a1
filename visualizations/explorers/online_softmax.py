"""OnlineSoftmaxExplorer: keys come in tile after tile, and what was summed before is rescaled when a higher score comes."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted
from visualizations.explorers.base import Explorer
from visualizations.figures.online_softmax import plot_online_softmax


class OnlineSoftmaxExplorer(Explorer):
    """One query's scores, taken in tile by tile; the size of a tile and the order of the keys can be changed.

        OnlineSoftmaxExplorer([0.3, 1.2, -0.4, 2.1], tile=2)

    scores: of one query with each key, finite numbers. values: what each key has to say, one number each; without them
    they are made from the key's number. tile: keys taken in per step at the beginning. The browser computes every step
    itself, so it needs no kernel. Raises ValueError without scores, for one that is no finite number, for another number of
    values, and for a tile below 1.
    """

    module = "online_softmax.js"

    def __init__(self, scores: Sequence[float], tile: int = 4, *, values: Sequence[float] | None = None, step: int = 0,
                 label: str = "Softmax, one tile at a time"):
        self.scores = [float(score) for score in scores]
        check(bool(self.scores) and all(map(math.isfinite, self.scores)), "scores", self.scores,
              "one or more finite numbers", "leave out masked keys")
        check(tile >= 1, "tile", tile, "1 or more keys", "take in at least one key at a time")
        self.tile = min(tile, len(self.scores))
        given = [math.sin(1.0 + key) for key in range(len(self.scores))] if values is None else list(values)
        check(len(given) == len(self.scores), "len(values)", len(given), f"{len(self.scores)}, one per score",
              "pass one number per key")
        sizes = sorted({size for size in (1, 2, 4, 8, 16) if size <= len(self.scores)} | {self.tile, len(self.scores)})
        super().__init__({"scores": [round(score, 4) for score in self.scores],
                          "values": [round(float(value), 4) for value in given], "tile": self.tile, "sizes": sizes},
                         label=label, step=step)

    def summary(self) -> str:
        return (f"{self.label}: {counted(len(self.scores), 'key')} in tiles of {self.tile}. Run this cell in JupyterLab to "
                "step through the tiles.")

    def figure(self) -> Figure:
        return plot_online_softmax(self.scores, self.tile)
