"""The random source of the generator. It keeps account of the surprise of what it drew, in nats."""

import math
from random import Random


class Dice(Random):
    """A `Random` whose draws add -log p to `nats`.

    Divided by the tokens of the text drawn, `nats` bounds the entropy rate of that text from above: no model, however good,
    has to do worse, and a model that has learned the text comes close. So the text can be judged before anything is trained.
    """

    nats = 0.0

    def choice(self, options):
        self.nats += math.log(len(options))
        return options[int(self.random() * len(options))]

    def skewed(self, options):
        """One of `options`, earlier ones a little more likely: option k has p = ((k + 1) / n)^(1 / 1.1) - (k / n)^(1 / 1.1)."""
        n = len(options)
        k = int(n * self.random() ** 1.1)
        self.nats -= math.log(((k + 1) / n) ** (1 / 1.1) - (k / n) ** (1 / 1.1))
        return options[k]

    def flip(self, p: float) -> bool:
        hit = self.random() < p
        if not 0 < p < 1:
            return hit
        self.nats -= math.log(p if hit else 1 - p)
        return hit

    def weighted(self, options, weights):
        pick = self.choices(range(len(options)), weights)[0]
        self.nats -= math.log(weights[pick] / sum(weights))
        return options[pick]

    def whole(self, low: int, high: int) -> int:
        """low <= result <= high."""
        return self.choice(range(low, high + 1))

    def some(self, options, count: int) -> list:
        """`count` different options, in order of drawing."""
        self.nats += sum(math.log(len(options) - i) for i in range(count))
        return self.sample(options, count)
