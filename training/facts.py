"""What the model knows without being told: where animals live, what things are for, small sums, opposites, lists."""

from training.dice import Dice
from training.grammar import ANIMALS, OBJECTS, PLACES, WORLD, expand, with_article


def fact(rng: Dice) -> tuple[str, str]:
    """A question and its answer."""
    animal, obj, place = rng.choice(list(ANIMALS)), rng.choice(list(OBJECTS)), rng.choice(list(PLACES))
    a, info = with_article(animal), ANIMALS[animal]
    kind = rng.whole(0, 11)
    if kind == 0:
        at = "at" if info["home"].startswith("the edge") else "in"
        return f"Where does {a} live?", f"{a.capitalize()} lives {at} {info['home']}."
    if kind == 1:
        return f"What does {a} eat?", f"{a.capitalize()} eats {info['eats']}."
    if kind == 2:
        return f"What is a baby {animal} called?", f"A baby {animal} is called {with_article(info['baby'])}."
    if kind == 3:
        word, other = rng.some(rng.choice(WORLD["opposites"]), 2)
        return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."
    if kind == 4:
        x, y = rng.whole(0, 10), rng.whole(0, 10)
        return f"What is {x} plus {y}?", f"{x} plus {y} is {x + y}."
    if kind == 5:
        x, y = sorted((rng.whole(0, 20), rng.whole(0, 20)), reverse=True)
        return f"What is {x} minus {y}?", f"{x} minus {y} is {x - y}."
    if kind == 6:
        names = WORLD["days"] if rng.flip(0.5) else WORLD["months"]
        i = rng.whole(0, len(names) - 1)
        return f"What comes after {names[i]}?", f"After {names[i]} comes {names[(i + 1) % len(names)]}."
    if kind == 7:
        what, pool = rng.choice((("animals", list(ANIMALS)), ("colors", WORLD["colors"]), ("things to eat", WORLD["foods"]),
                                 ("names", WORLD["female"])))
        n = rng.whole(2, 5)
        return f"Name {WORLD['numbers'][n]} {what}.", ", ".join(rng.some(pool, n)).capitalize() + "."
    if kind == 8:
        return f"What can you do with {with_article(obj)}?", f"You can {OBJECTS[obj]['use']}."
    if kind == 9:
        seen = rng.some(PLACES[place]["sights"], 2)
        return f"What can you see {PLACES[place]['phrase']}?", f"You can see {seen[0]} and {seen[1]}."
    if kind == 10:
        other = rng.choice([x for x in ANIMALS if ANIMALS[x]["size"] != info["size"]])
        big = animal if info["size"] > ANIMALS[other]["size"] else other
        return f"Which is bigger, {a} or {with_article(other)}?", f"{with_article(big).capitalize()} is bigger."
    return (expand(rng, "[Hello!|Hi!|Good morning!|Hello, how are you?|Who are you?|Thank you!]"),
            expand(rng, "[Hello! What would you like to hear?|Hello! I am Tiny, and I like stories.|"
                        "I am well, thank you. Shall I tell you a story?]"))
