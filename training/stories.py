"""Stories from a seeded world: who, where and with what is drawn first, and every sentence is filled from it.

The sentences stand in beats.txt, the things in world.json. A plot is a row of beats; common beats fall in between.
"""

import json
import re
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
WORLD = json.loads((HERE / "world.json").read_text())
ANIMALS, PEOPLE, OBJECTS, PLACES = (WORLD[k] for k in ("animals", "people", "objects", "places"))
ELDERS = ("owl", "turtle", "grandmother", "grandfather", "wizard", "teacher", "gardener", "shepherd", "witch", "queen")
WEATHER = ("sunny", "rainy", "windy", "foggy", "stormy", "warm", "cold", "cloudy", "quiet", "snowy")


def _read_beats() -> dict[str, list[str]]:
    beats, name = {}, None
    for line in (HERE / "beats.txt").read_text().splitlines():
        line = line.strip()
        if line.startswith("= "):
            name = line[2:]
            beats[name] = []
        elif line and not line.startswith("#"):
            beats[name].append(line)
    return beats


BEATS = _read_beats()
THREE_PART = sorted({name[:-1] for name in BEATS if name[-1].isdigit()})
PLOTS = {name: (name + "1", name + "2", name + "3") for name in THREE_PART} | {
    "stormrescue": ("storm1", "help1", "help2", "storm3"), "marketgift": ("trade1", "gift2", "gift3"),
    "nightwalk": ("afraid1", "noise2", "star3"), "treasure": ("map1", "secret2", "map3")}
# Loose words before and after a sentence of the plot: they carry no news, and keep the next token open.
OPENERS = ("then", "soon", "after a moment,", "at first,", "this time,", "once more,", "a little later,", "without a word,",
           "of course,", "little by little,", "before long,", "as if in a dream,", "that day,", "in the end,", "all at once,",
           "with a smile,", "by and by,", "at that,", "for once,", "sure enough,")
TAILS = (", of course", ", as always", ", little by little", ", all the same", ", with a smile", ", and that was that",
         ", slowly but surely", " under the {col} sky", ", while {snd}", " in the {season} light", ", to everyone's surprise",
         ", for once", " before lunch", ", and the day was long", ", just as {E} had said", " like never before",
         ", and {F} saw it", ", so to speak", " at last", ", quietly", ", with a little sigh", " near {see}")
# Before a noun now and then, for the same reason: words that fit any thing or sight and contradict none of their own.
GENERIC = ("old", "little", "dear", "good", "strange", "lovely", "dusty", "quiet", "funny", "fine", "pretty", "simple",
           "curious", "wonderful")
CLASHES = {"old": "new young", "little": "big giant tall huge great large long high wide small tiny heavy",
           "dusty": "new clean shiny wet bright sparkling", "quiet": "roaring loud noisy rushing", "pretty": "ugly plain",
           "simple": "fancy", "funny": "strange", "strange": "funny"}
PLAIN_BEATS = {"open", "end", "keepobj"}
_INNERMOST = re.compile(r"\[([^\[\]]*)\]")


def skewed(rng: Random, options):
    """One of `options`, earlier ones a little more likely, so that a model has something graded to learn."""
    return options[int(len(options) * rng.random() ** 1.1)]


def expand(rng: Random, template: str) -> str:
    """Resolve every [a|b|c], innermost first."""
    while "[" in template:
        template = _INNERMOST.sub(lambda m: skewed(rng, m.group(1).split("|")), template)
    return template


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith(("uni", "use")) else "a ") + words


def sentence_case(text: str) -> str:
    """Capital letters at the start of sentences and after an opening quote."""
    text = re.sub(r" +", " ", text).replace(" ,", ",").replace(" .", ".").strip()
    # After !" or ?" the sentence goes on ("Help!" called the fox), after ." a new one begins.
    text = re.sub(r"(^\"?|[.!?] \"?|\.\" \"?)([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)
    return re.sub(r"((?:said|asked|cried|called|shouted|whispered|written)[^.\"]*, \")([a-z])",
                  lambda m: m.group(1) + m.group(2).upper(), text)


class Character:
    """Somebody with a kind, a name and the pronouns that go with it, the same from the first sentence to the last."""

    def __init__(self, rng: Random, kind: str | None = None, name: str | None = None, avoid=(), plain: bool = False):
        self.rng = rng
        self.kind = kind or rng.choice([k for k in (*ANIMALS, *PEOPLE) if k not in avoid])
        info = ANIMALS.get(self.kind) or PEOPLE[self.kind]
        gender = info.get("gender", "b")
        if name in WORLD["female"] or name in WORLD["male"]:
            gender = "f" if name in WORLD["female"] else "m"
        elif gender == "b":
            gender = "f" if self.kind in ("cow", "hen") else rng.choice("fm")
        self.name = name or rng.choice([n for n in WORLD["female" if gender == "f" else "male"] if n not in avoid])
        self.named = not plain
        self.adjective = rng.choice(info["adjectives"])
        self.moves = info.get("moves", ["walked", "hurried", "ran"])
        self.he, self.him, self.his = ("she", "her", "her") if gender == "f" else ("he", "him", "his")

    def intro(self) -> str:
        if not self.named:
            return with_article(f"{self.adjective} {self.kind}")
        form = skewed(self.rng, ("{a} {k} named {n}", "{a} {k} called {n}", "{n} the {k}"))
        return form.format(a=with_article(self.adjective), k=self.kind, n=self.name)

    def ref(self) -> str:
        return self.name if self.named and self.rng.random() < 0.86 else f"the {self.kind}"

    def short(self) -> str:
        return self.name if self.named else f"the {self.kind}"


class Story:
    """One story's world and its text. The world stays, so that questions about the story can be answered from it."""

    def __init__(self, rng: Random, hero=None, hero_name=None, friend=None, obj=None, place=None, plot=None, length=None):
        self.rng = rng
        self.hero = Character(rng, hero, hero_name, avoid=(friend,), plain=hero_name is None and rng.random() < 0.15)
        taken = [self.hero.kind, self.hero.name]
        self.friend = Character(rng, friend, avoid=taken, plain=rng.random() < 0.2)
        taken += [self.friend.kind, self.friend.name]
        self.elder = Character(rng, rng.choice([e for e in ELDERS if e not in taken]), avoid=taken, plain=rng.random() < 0.7)
        self.obj = obj or rng.choice(list(OBJECTS))
        self.place = place or rng.choice(list(PLACES))
        self.adjective = rng.choice(OBJECTS[self.obj]["adjectives"])
        self.season = rng.choice(list(WORLD["seasons"]))
        self.color, self.food = rng.choice(WORLD["colors"]), rng.choice(WORLD["foods"])
        self.plot = plot or rng.choice(list(PLOTS))
        self.length = length or rng.choices(("short", "medium", "long"), (0.25, 0.5, 0.25))[0]
        self.templates: list[str] = []  # which line of beats.txt every piece came from
        self.text = self._write()

    def _write(self) -> str:
        chance = {"short": 0.12, "medium": 0.45, "long": 0.85}[self.length]
        rng = self.rng

        def maybe(name):
            return [name] if rng.random() < chance else []

        parts = PLOTS[self.plot]
        opening = ["open", *maybe("trait"), *maybe("setting"), "object"]
        # Later plots assume a friend, so one is met before the first of them is named.
        first = ["meet", parts[0], *maybe("sad"), *maybe("ask")]
        if first[-1] == "ask":
            first += maybe("answer")
        middle = [*maybe("plan"), *maybe("setting"), *parts[1:-1], *maybe("useit")]
        closing = [parts[-1], *maybe("happy"), *maybe("thanks"), *maybe("keepobj"), "end"]
        paragraphs = [opening, first, middle, closing]
        if self.length == "short":
            paragraphs = [opening + first, middle + closing]
        return "\n\n".join(" ".join(self._say(beat) for beat in beats) for beats in paragraphs if beats)

    def _say(self, beat: str) -> str:
        fresh = [t for t in BEATS[beat] if t not in self.templates] or BEATS[beat]
        template = self.rng.choice(fresh)
        self.templates.append(template)
        text = self._loosen(beat, expand(self.rng, template))
        text = re.sub(r"\{(\w+)\}", lambda m: self._slot(m.group(1)), text)
        return sentence_case(re.sub(r"\ba (?=old )", "an ", text))

    def _loosen(self, beat: str, text: str) -> str:
        """Sometimes a few loose words in front of a sentence without speech, sometimes a few at its end."""
        if beat in PLAIN_BEATS or '"' in text or "?" in text:
            return text
        if self.rng.random() < 0.5 and re.match(r"\{(H|F|E|he|his|they)\}|they |the |it ", text):
            text = f"{self.rng.choice(OPENERS)} {text}"
        if self.rng.random() < 0.45 and text.endswith("."):
            text = text[:-1] + self.rng.choice(TAILS) + "."
        return text

    def _generic(self, beside: str) -> str:
        """Often nothing, else a generic adjective and a space: none that repeats or contradicts the words `beside` it."""
        word = self.rng.choice(GENERIC)
        if self.rng.random() >= 0.35 or {word, *CLASHES.get(word, "").split()} & set(beside.split()):
            return ""
        return word + " "

    def _slot(self, name: str) -> str:
        rng, place, obj = self.rng, PLACES[self.place], OBJECTS[self.obj]
        people = {"": self.hero, "f": self.friend, "e": self.elder}
        for prefix, who in people.items():
            if name in (prefix + "he", prefix + "him", prefix + "his"):
                return getattr(who, name[len(prefix):])
        for letter, who in zip("HFE", people.values()):
            if name[0] == letter:
                return {letter: who.ref, letter + "i": who.intro, letter + "s": who.short}[name]()
        match name:
            case "O": return self._generic(self.adjective) + self.obj
            case "Oi": return with_article(f"{self.adjective} {self.obj}")
            case "oa": return self.adjective
            case "use": return obj["use"]
            case "feat": return skewed(rng, obj["features"])
            case "pp": return place["phrase"]
            case "place": return self.place
            case "see":
                sight = re.sub(r"^(a|an|the) ", "", skewed(rng, place["sights"]))
                return f"the {self._generic(sight)}{sight}"
            case "snd": return skewed(rng, place["sounds"])
            case "smell": return skewed(rng, place["smells"])
            case "season": return self.season
            case "seasd": return skewed(rng, WORLD["seasons"][self.season])
            case "food": return self.food if rng.random() < 0.6 else rng.choice(WORLD["foods"])
            case "col": return self.color
            case "w": return skewed(rng, WEATHER)
        raise KeyError(f"beats.txt uses the unknown slot {name!r}")
