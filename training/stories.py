"""Stories from a seeded world: who, where and with what is drawn first, and every sentence is filled from it.

The sentences stand in beats.txt, the things in world.json, loose words in pools.txt. A plot is a row of beats; common beats
and glances at the world around fall in between.
"""

import json
import re
from functools import cached_property
from pathlib import Path

from training.dice import Dice

HERE = Path(__file__).parent
WORLD = json.loads((HERE / "world.json").read_text(encoding="utf-8"))
ANIMALS, PEOPLE, OBJECTS, PLACES = (WORLD[k] for k in ("animals", "people", "objects", "places"))
ELDERS = ("owl", "turtle", "grandmother", "grandfather", "wizard", "teacher", "gardener", "shepherd", "witch", "queen")
WEATHER = ("sunny", "rainy", "windy", "foggy", "stormy", "warm", "cold", "cloudy", "quiet", "snowy")


def _read_beats() -> dict[str, list[str]]:
    beats, name = {}, None
    for line in (HERE / "beats.txt").read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("= "):
            name = line[2:]
            beats[name] = []
        elif line and not line.startswith("#"):
            beats[name].append(line)
    return beats


def _read_pools() -> dict[str, list[str]]:
    lines = [line for line in (HERE / "pools.txt").read_text(encoding="utf-8").splitlines() if line.startswith("@")]
    return {name[1:]: words.split(", ") for name, words in (line.split(": ", 1) for line in lines)}


BEATS = _read_beats()
POOLS = _read_pools()
THREE_PART = sorted({name[:-1] for name in BEATS if name[-1].isdigit()})
PLOTS = {name: (name + "1", name + "2", name + "3") for name in THREE_PART} | {
    "stormrescue": ("storm1", "help1", "help2", "storm3"), "marketgift": ("trade1", "gift2", "gift3"),
    "nightwalk": ("afraid1", "noise2", "star3"), "treasure": ("map1", "secret2", "map3")}
# Loose words before and after a sentence of the plot: they carry no news, and keep the next token open.
OPENERS = ("then", "soon", "after a moment,", "at first,", "this time,", "once more,", "a little later,", "without a word,",
           "of course,", "little by little,", "before long,", "as if in a dream,", "that day,", "in the end,", "all at once,",
           "with a smile,", "by and by,", "at that,", "for once,", "sure enough,", "<clock>,", "<clock>,", "<clock>,",
           "to the surprise of a <person> <someone>,", "with a <look> <thing> in one hand,", "still <mood>,", "<mood>,",
           "while a <beast> <did>,", "far from <town>,", "under a sky that was <sky>,", "before the <someone> came back,")
TAILS = (", of course", ", as always", ", little by little", ", all the same", ", with a smile", ", and that was that",
         ", slowly but surely", " under the {col} sky", ", while {snd}", " in the {season} light", ", to everyone's surprise",
         ", for once", " before lunch", ", and the day was long", ", just as {E} had said", " like never before",
         ", and {F} saw it", ", so to speak", " at last", ", quietly", ", with a little sigh", " near {see}",
         " <where>", " <clock>", ", while a <beast> <did>", ", and a <person> <someone> saw it", ", to the sound of <beasts>",
         ", far from <town>", ", and the sky was <sky>", " in the smell of <smell>", ", next to a <look> <thing>",
         " in front of <number> <beasts>", ", and thought of <topic>", ", humming a song about <topic>",
         " beside a <look> <color> <thing>", ", though the air was <air>", ", while a <someone> from <town> slept",
         " with the help of <relative>", ", <mood> and <mood>")
# Before a noun now and then, for the same reason: words that fit any thing or sight and contradict none of their own.
GENERIC = ("old", "little", "dear", "good", "strange", "lovely", "dusty", "quiet", "funny", "fine", "pretty", "simple",
           "curious", "wonderful", "famous", "precious", "beautiful", "odd", "familiar", "well-known", "splendid", "faded",
           "forgotten", "nameless", "plain", "modest", "handsome", "proud", "peaceful", "mysterious", "usual", "crooked")
CLASHES = {"old": "new young", "little": "big giant tall huge great large long high wide small tiny heavy",
           "dusty": "new clean shiny wet bright sparkling", "quiet": "roaring loud noisy rushing", "pretty": "ugly plain",
           "simple": "fancy", "funny": "strange", "strange": "funny", "faded": "bright new shiny", "plain": "fancy pretty",
           "peaceful": "roaring stormy", "crooked": "straight", "beautiful": "ugly"}
PLAIN_BEATS = {"open", "trait", "object", "end", "keepobj", "scene", "talk", "origin"}
# A sentence of one action, which may be given a tail: not one that says how things were.
ACTION = re.compile(r"(?!.*\b(was|were|had|could|liked|lived|knew|not|felt)\b)(\{([HFE]|f?he)\}|they) [^.:]*\.$")
SPEECH = re.compile(r'(.)" (said|asked|whispered|called|cried) (\{([HFE])\})(?=\.|, and)')
VERBS = {"said": ("said", "said", "said", "answered", "murmured", "replied", "declared", "remarked", "put in"),
         "asked": ("asked", "asked", "wondered", "inquired"), "called": ("called", "shouted"), "cried": ("cried", "exclaimed"),
         "whispered": ("whispered", "breathed")}
_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_POOL = re.compile(r"<(\w+)>")


def expand(rng: Dice, template: str) -> str:
    """Resolve every [a|b|c], innermost first, then every <pool>, a pool's own pools included. No word comes twice."""
    while "[" in template:
        template = _INNERMOST.sub(lambda m: rng.skewed(m.group(1).split("|")), template)
    used = set()

    def draw(match):
        while (word := rng.choice(POOLS[match.group(1)])) in used:
            pass
        used.add(word)
        return word

    while (filled := _POOL.sub(draw, template)) != template:
        template = filled
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

    def __init__(self, rng: Dice, kind: str | None = None, name: str | None = None, avoid=(), plain: bool = False):
        self.rng = rng
        self.kind = kind or rng.choice([k for k in (*ANIMALS, *PEOPLE) if k not in avoid])
        info = ANIMALS.get(self.kind) or PEOPLE[self.kind]
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
        self.moves = info.get("moves", ["walked", "hurried", "ran"])
        self.he, self.him, self.his = ("she", "her", "her") if gender == "f" else ("he", "him", "his")

    def intro(self) -> str:
        if not self.named:
            return with_article(f"{self.adjective} {self.kind}")
        form = self.rng.skewed(("{a} {k} named {n}", "{a} {k} called {n}", "{n} the {k}"))
        return form.format(a=with_article(self.adjective), k=self.kind, n=self.name)

    def ref(self) -> str:
        if self.named and self.rng.flip(0.7):
            return self.name
        return f"the {self.kind}" if self.rng.flip(0.7) else f"the {self.adjective} {self.kind}"

    def short(self) -> str:
        return self.name if self.named else f"the {self.kind}"


class Story:
    """One story's world and its text. The world stays, so that questions about the story can be answered from it."""

    def __init__(self, rng: Dice, hero=None, hero_name=None, friend=None, obj=None, place=None, plot=None, length=None):
        self.rng = rng
        self.hero = Character(rng, hero, hero_name, avoid=(friend,), plain=hero_name is None and rng.flip(0.15))
        self.friend = Character(rng, friend, avoid=[self.hero.kind, self.hero.name], plain=rng.flip(0.2))
        self.obj = obj or rng.choice(list(OBJECTS))
        self.place = place or rng.choice(list(PLACES))
        self.adjective = rng.choice(OBJECTS[self.obj]["adjectives"])
        self.plot = plot or rng.choice(list(PLOTS))
        self.length = length or rng.weighted(("short", "medium", "long"), (0.25, 0.5, 0.25))
        self.templates: list[str] = []  # which line of beats.txt every piece came from
        self.text = self._write()

    # The rest of the world is drawn when a sentence first asks for it.
    @cached_property
    def elder(self) -> Character:
        taken = [self.hero.kind, self.hero.name, self.friend.kind, self.friend.name]
        kind = self.rng.choice([kind for kind in ELDERS if kind not in taken])
        return Character(self.rng, kind, avoid=taken, plain=self.rng.flip(0.7))

    @cached_property
    def season(self) -> str:
        return self.rng.choice(list(WORLD["seasons"]))

    @cached_property
    def color(self) -> str:
        return self.rng.choice(WORLD["colors"])

    @cached_property
    def food(self) -> str:
        return self.rng.choice(WORLD["foods"])

    def _write(self) -> str:
        rng = self.rng
        chance, glance = {"short": (0.06, 0.6), "medium": (0.25, 0.85), "long": (0.5, 0.95)}[self.length]

        def maybe(name, p=chance):
            return [name] if rng.flip(p) else []

        def mixed(*beats):
            return rng.some(beats, len(beats))

        parts = PLOTS[self.plot]
        opening = ["open", *mixed(*maybe("trait"), *maybe("setting"), *maybe("scene", glance), *maybe("scene", glance / 3)),
                   "object", *maybe("origin", 0.75), *maybe("scene", glance)]
        # Later plots assume a friend, so one is met before the first of them is named.
        first = ["meet", *maybe("talk", glance), parts[0], *maybe("sad"), *maybe("ask")]
        if first[-1] == "ask":
            first += maybe("answer")
        middle = [*mixed(*maybe("plan"), *maybe("setting"), *maybe("scene", glance)), parts[1], *maybe("talk", glance),
                  *parts[2:-1], *maybe("useit")]
        closing = [*mixed(*maybe("scene", glance / 2), *maybe("talk", glance / 3)), parts[-1],
                   *mixed(*maybe("happy"), *maybe("thanks"), *maybe("talk", glance / 2)), *maybe("keepobj"), "end"]
        paragraphs = [opening, first, middle, closing]
        if self.length == "short":
            paragraphs = [opening + first, middle + closing]
        return "\n\n".join(" ".join(self._say(beat) for beat in beats) for beats in paragraphs if beats)

    def _say(self, beat: str) -> str:
        fresh = [t for t in BEATS[beat] if t not in self.templates] or BEATS[beat]
        template = self.rng.choice(fresh)
        self.templates.append(template)
        text = SPEECH.sub(self._speech, expand(self.rng, template))
        text = expand(self.rng, self._loosen(beat, text))
        text = re.sub(r"\{(\w+)\}", lambda m: self._slot(m.group(1)), text)
        return sentence_case(re.sub(r"\b([Aa]) (?=[aeio]|un[^i])", r"\1n ", text))

    def _speech(self, match: re.Match) -> str:
        """One of the words for `said`, and sometimes how it was said, or a gesture."""
        before, verb, who, letter = match.groups()
        verb = "asked" if before == "?" and verb == "said" else verb
        tag = f'{before}" {self.rng.choice(VERBS[verb])} {who}'
        more = self.rng.weighted(("", " <way>", " and <gesture>"), (0.35, 0.4, 0.25))
        own = {"H": "", "F": "f", "E": "e"}[letter]
        return tag + re.sub(r"\{(his|him)\}", rf"{{{own}\1}}", expand(self.rng, more))

    def _loosen(self, beat: str, text: str) -> str:
        """Sometimes a few loose words in front of a sentence without speech, sometimes a few at its end."""
        if beat in PLAIN_BEATS or '"' in text or "?" in text:
            return text
        if ACTION.match(text) and self.rng.flip(0.7):
            text = text[:-1] + self.rng.choice(TAILS) + "."
        if re.match(r"\{([HFE]|f?he)\}|they ", text) and self.rng.flip(0.5):
            return f"{self.rng.choice(OPENERS)} {text}"
        if ACTION.match(text) and self.rng.flip(0.45):
            who, rest = text.split(" ", 1)
            return text if rest.startswith("and ") else f"{who} <adv> {rest}"
        return text

    def _generic(self, beside: str) -> str:
        """Often nothing, else a generic adjective and a space: none that repeats or contradicts the words `beside` it."""
        if not self.rng.flip(0.5):
            return ""
        word = self.rng.choice(GENERIC)
        return "" if {word, *CLASHES.get(word, "").split()} & set(beside.split()) else word + " "

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
            case "O":
                return self._generic(self.adjective) + self.obj
            case "Oi":
                return with_article(f"{self._generic(self.adjective)}{self.adjective} {self.obj}")
            case "oa":
                return self.adjective
            case "use":
                return obj["use"]
            case "feat":
                return rng.skewed(obj["features"])
            case "pp":
                return place["phrase"]
            case "place":
                return self.place
            case "see":
                sight = re.sub(r"^(a|an|the) ", "", rng.skewed(place["sights"]))
                return f"the {self._generic(sight)}{sight}"
            case "snd":
                return rng.skewed(place["sounds"])
            case "smell":
                return rng.skewed(place["smells"])
            case "season":
                return self.season
            case "seasd":
                return rng.skewed(WORLD["seasons"][self.season])
            case "food":
                return self.food if rng.flip(0.4) else rng.choice(WORLD["foods"])
            case "col":
                return self.color
            case "w":
                return rng.skewed(WEATHER)
        raise KeyError(f"beats.txt uses the unknown slot {name!r}")
