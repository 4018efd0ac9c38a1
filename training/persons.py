"""The persons of a story: animals and people, each with a kind, mostly a name, and the pronouns that go with it."""

from typing import Any

from training.dice import Dice
from training.grammar import ANIMALS, PEOPLE, POOLS, WORLD, with_article

ELDERS = ("owl", "turtle", "grandmother", "grandfather", "wizard", "teacher", "gardener", "shepherd", "witch", "queen")


class Character:
    """Somebody with a kind, a name and the pronouns that go with it, the same from the first sentence to the last."""

    def __init__(self, rng: Dice, kind: str | None = None, name: str | None = None, avoid: Any = (), plain: bool = False):
        self.rng = rng
        self.kind: str = kind or rng.choice([k for k in (*ANIMALS, *PEOPLE) if k not in avoid])
        self.info = info = ANIMALS.get(self.kind) or PEOPLE[self.kind]
        gender = info.get("gender", "b")
        if name in WORLD["female"] or name in WORLD["male"]:
            gender = "f" if name in WORLD["female"] else "m"
        elif gender == "b":
            gender = "f" if self.kind in ("cow", "hen") else rng.choice("fm")
        self.named = not plain
        if self.named:
            name = name or rng.choice([n for n in WORLD["female" if gender == "f" else "male"] if n not in avoid])
        self.name = name
        self.adjective = rng.choice(info["adjectives"] if rng.flip(0.4) else POOLS["lively"])
        self.he, self.him, self.his = ("she", "her", "her") if gender == "f" else ("he", "him", "his")

    def intro(self) -> str:
        if not self.named:
            return with_article(f"{self.adjective} {self.kind}")
        form = self.rng.skewed(("{a} {k} named {n}", "{a} {k} called {n}", "{n} the {k}"))
        return form.format(a=with_article(self.adjective), k=self.kind, n=self.name)

    def ref(self) -> str:
        if self.named and self.rng.flip(0.7):
            return str(self.name)
        return f"the {self.kind}" if self.rng.flip(0.7) else f"the {self.adjective} {self.kind}"

    def short(self) -> str:
        return str(self.name) if self.named else f"the {self.kind}"
