"""Names that no weight can know: of keys, tools and arguments, to be copied from the prompt.

Several kinds, because a model that has learned to copy made-up syllables does not copy words yet: it begins an English word of
several tokens, and goes on with one that it has seen more often.
"""

from collections.abc import Collection
from pathlib import Path

from training.dice import Dice

WORDS = tuple(word for line in (Path(__file__).parent / "key_words.txt").read_text(encoding="utf-8").splitlines()
              if not line.startswith("#") for word in line.split())


def made_up(rng: Dice) -> str:
    """A word that no language has."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.whole(2, 4)))


def another_name(rng: Dice, taken: Collection[str] = ()) -> str:
    """A made-up word, an English one, or two of them in one name, as programs write it; none of those that are taken."""
    while (name := _any_name(rng)) in taken:
        pass
    return name


def _any_name(rng: Dice) -> str:
    kind = rng.weighted(("made up", "word", "two words"), (0.35, 0.35, 0.3))
    if kind == "made up":
        return made_up(rng)
    if kind == "word":
        return rng.choice(WORDS)
    first, second = (made_up(rng) if rng.flip(0.15) else rng.choice(WORDS) for _ in range(2))
    return f"{first}_{second}" if rng.flip(0.6) else first + second.title()
