"""The files that stories are made of, and how a template becomes a sentence: choices, pools, articles, plurals, capitals."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.dice import Dice

HERE = Path(__file__).parent
WORLD: dict[str, Any] = json.loads((HERE / "world.json").read_text(encoding="utf-8"))
ANIMALS, PEOPLE, OBJECTS = (WORLD[name] for name in ("animals", "people", "objects"))
_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_POOL = re.compile(r"<(\w+)>")
IRREGULAR = {"goose": "geese", "mouse": "mice", "calf": "calves", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
             "thief": "thieves", "fish": "fish", "sheep": "sheep", "deer": "deer", "trout": "trout", "shrimp": "shrimp",
             "swan": "swans", "chamois": "chamois", "reindeer": "reindeer", "grouse": "grouse", "titmouse": "titmice",
             "elk": "elk", "silverfish": "silverfish", "goldfish": "goldfish", "jellyfish": "jellyfish",
             "starfish": "starfish", "perch": "perch", "pike": "pike", "policeman": "policemen", "postman": "postmen"}


@dataclass
class Line:
    """One way to say a beat, for stories of all the kinds in `only`."""

    text: str
    only: frozenset[str] = frozenset()


@dataclass
class Plot:
    """The beats of a plot, what may be said around them, where it fits, and words that are drawn once for the whole of it."""

    beats: tuple[str, ...]
    flags: set[str] = field(default_factory=set)
    only: set[str] = field(default_factory=set)
    never: set[str] = field(default_factory=set)
    season: str | None = None
    words: dict[str, list[str]] = field(default_factory=dict)

    def fits(self, tags: set[str]) -> bool:
        return self.only <= tags and not self.never & tags


def read_beats(text: str) -> tuple[dict[str, list[Line]], dict[str, Plot]]:
    """The beats by name, and the plots: those of three beats whose names end in 1, 2 and 3."""
    beats: dict[str, list[Line]] = {}
    plots: dict[str, Plot] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("= "):
            name = line[2:]
            beats[name] = []
            if name.endswith("1"):
                plots[name[:-1]] = Plot(tuple(name[:-1] + number for number in "123"))
        elif line.startswith("~ "):
            _read_condition(plots[name[:-1]], line[2:])
        elif not line.startswith("#"):
            only, rest = re.match(r"(?:\(([\w ]+)\) )?(.*)", line).groups()  # type: ignore[union-attr]
            beats[name].append(Line(rest, frozenset((only or "").split())))
    return beats, plots


def _read_condition(plot: Plot, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word.endswith(":"):
        plot.words[word[:-1]] = rest.split("|")
    elif word == "only":
        plot.only |= set(rest.split())
    elif word == "not":
        plot.never |= set(rest.split())
    elif word == "season":
        plot.season = rest
    else:
        plot.flags |= set(line.split())


def read_places(text: str) -> dict[str, dict[str, Any]]:
    """By name: phrase ("in the forest"), tags, and the lists of what belongs there."""
    places: dict[str, dict[str, Any]] = {}
    for line in filter(None, text.splitlines()):
        head, _, rest = line.partition(": ")
        if line.startswith("= "):
            place = places[head[2:]] = {"phrase": rest}
        elif not line.startswith("#"):
            place[head] = rest.split() if head == "tags" else rest.split(", ")
    return places


def read_pools(text: str) -> dict[str, list[str]]:
    lines = [line[1:].split(": ", 1) for line in text.splitlines() if line.startswith("@")]
    return {name: words.split(", ") for name, words in lines}


BEATS, PLOTS = read_beats((HERE / "beats.txt").read_text(encoding="utf-8"))
PLACES = read_places((HERE / "places.txt").read_text(encoding="utf-8"))
POOLS = read_pools((HERE / "pools.txt").read_text(encoding="utf-8")) | {
    "first": WORLD["female"] + WORLD["male"], "object": list(OBJECTS), "food": WORLD["foods"], "day": WORLD["days"],
    "being": [*ANIMALS, *PEOPLE]}


def expand(rng: Dice, template: str) -> str:
    """Resolve every [a|b|c], innermost first, then every <pool>, a pool's own pools included. No word comes twice."""
    while "[" in template:
        template = _INNERMOST.sub(lambda m: rng.skewed(m.group(1).split("|")), template)
    used: set[str] = set()

    def draw(match: re.Match[str]) -> str:
        while (word := rng.choice(POOLS[match.group(1)])) in used:
            pass
        used.add(word)
        return word

    while (filled := _POOL.sub(draw, template)) != template:
        template = filled
    return expand(rng, template) if "[" in template else template


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith(("uni", "use")) else "a ") + words


def without_article(words: str) -> str:
    return re.sub(r"^(a|an|the) ", "", words)


def plural(words: str) -> str:
    """Of a noun or of a noun with words behind it: "milk pail", "basket of eggs", "ladder on wheels"."""
    head, joint, rest = re.match(r"(.*?)( (?:of|on|in) )?((?<= )(?<=of |on |in ).*)?$", words).groups()  # type: ignore
    before, _, noun = head.rpartition(" ")
    if noun in IRREGULAR:
        noun = IRREGULAR[noun]
    elif noun.endswith("man") and noun != "human":
        noun = noun[:-3] + "men"
    elif re.search(r"(s|x|z|ch|sh)$", noun):
        noun += "es"
    elif re.search(r"[^aeiou]y$", noun):
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return f"{before} {noun}".strip() + (joint or "") + (rest or "")


def sentence_case(text: str) -> str:
    """Capital letters at the start of sentences and after an opening quote."""
    text = re.sub(r" +", " ", text).replace(" ,", ",").replace(" .", ".").strip()
    # After !" or ?" the sentence goes on ("Help!" called the fox), after ." a new one begins.
    text = re.sub(r"(^\"?|[.!?] \"?|\.\" \"?)([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)
    return re.sub(r"((?:said|asked|cried|called|shouted|whispered|written)[^.\"]*[,:] \")([a-z])",
                  lambda m: m.group(1) + m.group(2).upper(), text)
