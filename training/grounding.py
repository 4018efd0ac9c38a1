"""Does a story stay with what it is about? The share of its sentences whose nouns request, place or plot brought in.

Nouns are those of the generator's own lists (places.txt, world.json) and of nouns.txt. A noun is grounded when it stands in
the request, or in the lists of the story's place, object, persons, season or plot, or among the everyday words: those that the
common beats are written in, which fit every story. Place, object and plot of a text that only a model knows are told from its
words. A story's cast is small: of animals and people it may bring in three kinds, of foods two.
"""

import re
from functools import cache
from itertools import chain, pairwise
from typing import Any

from training.grammar import ANIMALS, BEATS, HERE, OBJECTS, PEOPLE, PLACES, PLOTS, POOLS, WORLD, plural
from training.stories import OPENERS, TAILS

NAMES = {*WORLD["female"], *WORLD["male"], *POOLS["town"]}
KINDS = {*ANIMALS, *PEOPLE}
NOT_STORIES = ("topic", "someone", "relative", "first", "object", "food", "day", "being")  # pools for requests and questions
PLACE_NOUNS = ("sights", "things", "beasts", "folk", "plants", "smells")
_WORD = re.compile(r"[A-Za-z]+(?:-[a-z]+)?")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*\"?")


def words_of(*texts: str) -> set[str]:
    """Lower-case words, what stands in {slots} and <pools> left out."""
    return {word.lower() for text in texts for word in _WORD.findall(re.sub(r"\{\w+\}|<\w+>", " ", text))}


def _deep(value: Any) -> str:
    """All text in a piece of world.json."""
    if isinstance(value, dict):
        return " ".join(map(_deep, value.values()))
    return " ".join(map(_deep, value)) if isinstance(value, (list, tuple)) else str(value)


def _nouns(phrase: str) -> list[str]:
    """The nouns of "a basket of wet eggs": the last word of every part."""
    return [part.split()[-1] for part in re.split(r" (?:of|in|on|with|and|by|far) ", phrase) if part.split()]


@cache
def singular() -> dict[str, str]:
    """Every noun known, in both numbers -> its singular (or the one form there is)."""
    phrases = chain(*(PLACES[place][name] for place in PLACES for name in PLACE_NOUNS), WORLD["foods"], OBJECTS, KINDS,
                    *(words for plot in PLOTS.values() for words in plot.words.values()))
    known = {noun for phrase in phrases for noun in _nouns(phrase) if noun.isalpha()}
    listed = (HERE / "nouns.txt").read_text(encoding="utf-8").splitlines()[1:]
    known |= {word for line in listed for word in line.split()}
    # A plural that is listed itself is one with its singular.
    return {noun: noun for noun in known} | {plural(noun): noun for noun in sorted(known)}


def _forms(words: set[str]) -> set[str]:
    return {singular().get(word, word) for word in words}


@cache
def everyday() -> set[str]:
    """The words of the beats that belong to no plot, and of what is said around sentences."""
    ours = {beat for plot in PLOTS.values() for beat in plot.beats}
    lines = [line.text for name, beat in BEATS.items() if name not in ours for line in beat]
    pools = [word for name, pool in POOLS.items() if name not in NOT_STORIES for word in pool]
    pools += [*OPENERS, *TAILS, *WORLD["seasons"], _deep(WORLD["seasons"]), *WORLD["colors"]]
    return _forms(words_of(*lines, *pools)) - KINDS


@cache
def plot_words(plot: str) -> set[str]:
    lines = [line.text for beat in PLOTS[plot].beats for line in BEATS[beat]]
    return _forms(words_of(*lines, *chain(*PLOTS[plot].words.values())))


def _pairs(text: str) -> set[str]:
    """Words that follow each other, and single words; what stands in slots and choices breaks a row."""
    pieces = re.split(r"\{\w+\}|<\w+>|[\[\]|.,!?:\"]", text.lower())
    rows = [piece.split() for piece in pieces]
    return {word for row in rows for word in row} | {" ".join(pair) for row in rows for pair in pairwise(row)}


@cache
def _telling() -> dict[str, dict[str, float]]:
    """For every plot its words and pairs of words, and what each says for it: less, the more plots have it."""
    common = set().union(*(_pairs(line.text) for beat in ("open", "trait", "object", "meet", "scene", "talk", "end")
                           for line in BEATS[beat]))
    marks = {plot: set().union(*(_pairs(line.text) for beat in PLOTS[plot].beats for line in BEATS[beat])) - common
             for plot in PLOTS}
    return {plot: {mark: 1 / sum(mark in other for other in marks.values()) for mark in marks[plot]} for plot in PLOTS}


def likely_plots(text: str, count: int = 2) -> list[str]:
    """The plots whose own words the text has most of."""
    said = _pairs(text)
    return sorted(PLOTS, key=lambda plot: -sum(w for mark, w in _telling()[plot].items() if mark in said))[:count]


def likely_place(text: str) -> str:
    """The place that the text names first, else the one of whose words it has most."""
    at = {place: text.find(PLACES[place]["phrase"]) for place in PLACES if PLACES[place]["phrase"] in text}
    if at:
        return min(at, key=lambda place: at[place])
    said = words_of(text)
    return max(PLACES, key=lambda place: len(said & words_of(_deep(PLACES[place]))))


def likely_object(text: str, besides: set[str]) -> str | None:
    """The object that is named most often, of those that are not among the words `besides`."""
    times = {obj: len(re.findall(rf"\b{obj}\b", text)) for obj in OBJECTS if obj not in besides}
    most = max(times, key=lambda obj: times[obj])
    return most if times[most] else None


def _cast(text: str) -> set[str]:
    """The first three kinds of animals and people, and the first two foods, that the text names."""
    def first(names: Any, count: int) -> list[str]:
        at = {name: found.start() for name in names if (found := re.search(rf"\b{name}\b", text, re.IGNORECASE))}
        return sorted(at, key=lambda name: at[name])[:count]

    kinds = first(KINDS, 3)
    about = [_deep(ANIMALS.get(kind) or PEOPLE[kind]) for kind in kinds]
    return words_of(*kinds, *first(WORLD["foods"], 2), *about)


def strays(text: str, request: str = "") -> list[tuple[str, list[str]]]:
    """Every sentence of the text, with its nouns that nothing brought in."""
    place = next((p for p in PLACES if PLACES[p]["phrase"] in request), None) or likely_place(text)
    allowed = everyday().union(_forms(words_of(request, _deep(PLACES[place]), place) | _cast(text)),
                               *map(plot_words, likely_plots(text)))
    obj = next((o for o in OBJECTS if re.search(rf"\b{o}\b", request)), None) or likely_object(text, allowed)
    if obj:
        allowed |= _forms(words_of(obj, _deep(OBJECTS[obj])))
    sentences = []
    for sentence in _SENTENCE.findall(text):
        said = [word for word in _WORD.findall(sentence) if word not in NAMES]
        nouns = [singular()[word.lower()] for word in said if word.lower() in singular()]
        if said:
            sentences.append((sentence.strip(), [noun for noun in nouns if noun not in allowed]))
    return sentences


def grounded_share(text: str, request: str = "") -> float:
    """Between 0 and 1; 1 for a text without sentences."""
    sentences = strays(text, request)
    return sum(not nouns for _, nouns in sentences) / max(1, len(sentences)) if sentences else 1.0
