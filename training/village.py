"""A made-up village: who lives where, owns what, likes what. Its facts stand in a prompt, and answers are computed from it."""

from dataclasses import dataclass

from training.dice import Dice
from training.grammar import OBJECTS, PLACES, POOLS, WORLD, expand, with_article
from training.persons import Character

ABOUT = ("You know this village.", "This is our village.", "Answer questions about the village.", "We live in <town>.",
         "You are a guide in <town>.", "This is what everyone in <town> knows.")


@dataclass
class Villager:
    name: str
    kind: str
    house: str       # a color, no two alike
    owns: str        # an object, no two alike
    food: str
    age: int | None  # where the facts tell it

    def fact(self, rng: Dice) -> str:
        age = f"is {self.age} years old, " if self.age else ""
        where = expand(rng, f"[|| near {rng.choice(PLACES['village']['sights'])}]")
        return expand(rng, f"{self.name} the {self.kind} {age}[lives in|has|built|sleeps in] the {self.house} house{where}, "
                           f"[owns|keeps|carries] {with_article(self.owns)} and likes {self.food}.")


class Village:
    """Between `fewest` and `most` villagers with different names, kinds, houses and things."""

    def __init__(self, rng: Dice, fewest: int = 2, most: int = 7, ages: bool = False):
        self.town = rng.choice(POOLS["town"])
        taken: list[str] = []
        count = rng.whole(fewest, most)
        objects, colors = rng.some(list(OBJECTS), count), rng.some(WORLD["colors"], count)
        self.villagers: list[Villager] = []
        for thing, color in zip(objects, colors):
            who = Character(rng, avoid=taken)
            taken += [who.kind, str(who.name)]
            food = rng.choice(WORLD["foods"])
            self.villagers.append(Villager(str(who.name), who.kind, color, thing, food, rng.whole(2, 99) if ages else None))
        self.text = " ".join([rng.choice(ABOUT).replace("<town>", self.town), *(who.fact(rng) for who in self.villagers)])

    def questions(self) -> list[tuple[str, str, Villager]]:
        """All questions about it, with their answers, and whom they are about."""
        asked = []
        for who in self.villagers:
            thing = with_article(who.owns)
            asked += [(f"What color is {who.name}'s house?", f"It is {who.house}.", who),
                      (f"What does {who.name} own?", f"{who.name} owns {thing}.", who),
                      (f"What does {who.name} like to eat?", f"{who.name} likes {who.food}.", who),
                      (f"Who is {who.name}?", f"{who.name} is {with_article(who.kind)}.", who),
                      (f"Who owns {thing}?", f"{who.name} the {who.kind} owns it.", who),
                      (f"Who lives in the {who.house} house?", f"{who.name} the {who.kind} lives there.", who)]
            if who.age:
                asked.append((f"How old is {who.name}?", f"{who.name} is {who.age} years old.", who))
        return asked
