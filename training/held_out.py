"""Pairs that training never brings together, so that the judge can ask for what a model cannot have learned by heart."""

from training.dice import Dice
from training.grammar import ANIMALS, OBJECTS, PEOPLE
from training.stories import Story


def held_out(hero: str, other: str) -> bool:
    """Pairs of a hero and an object, or a hero and a place, that no training text brings together: about one in twelve."""
    return (sum(map(ord, hero)) * 7 + sum(map(ord, other)) * 13) % 12 == 0


def seen_story(rng: Dice, **given) -> Story:
    """A story without a held-out pair."""
    while True:
        before = rng.nats
        story = Story(rng, **given)
        if not held_out(story.hero.kind, story.obj) and not held_out(story.hero.kind, story.place):
            return story
        rng.nats = before  # what was thrown away is not in the text


def unheard(rng: Dice) -> tuple[str, str]:
    """A hero and an object whose pair is not held out."""
    while held_out(*(pair := (rng.choice([*ANIMALS, *PEOPLE]), rng.choice(list(OBJECTS))))):
        pass
    return pair
