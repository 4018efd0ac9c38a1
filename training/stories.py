"""Stories from a seeded world: who, where and with what is drawn first, and every sentence is filled from it.

A plot is a row of beats; common beats and glances at the world around fall in between. What a glance falls on belongs to the
story's own place, season, persons and things: nothing is drawn from a list of all there is.
"""

import re
from functools import cached_property

from training.dice import Dice
from training.grammar import (
    ANIMALS,
    BEATS,
    OBJECTS,
    PLACES,
    PLOTS,
    POOLS,
    WORLD,
    Line,
    Plot,
    expand,
    plural,
    sentence_case,
    with_article,
    without_article,
)
from training.persons import ELDERS, Character

PLOTS["stormrescue"] = Plot(("storm1", "help1", "help2", "help3", "storm3"), {"apart"}, {"out"}, words=PLOTS["help"].words)
PLOTS["treasure"] = Plot(("map1", "map2", "secret2", "secret3"), {"plan"}, words=PLOTS["secret"].words)
FAIR = {"sunny", "bright", "hot", "clear", "dry", "cloudless", "warm", "golden", "mild", "fresh"}
# Loose words before and after a sentence of the plot: they carry no news, and keep the next token open.
OPENERS = ("then", "soon", "after a moment,", "a little later,", "<later>,", "before long,", "<later>,", "<later>,",
           "while a <kind> {beast} <did>,", "still <calm>,", "while {snd},", "{spot},", "{spot},", "not far from {see},",
           "in the smell of {smell},", "carrying a <look> {thing},", "while the {folk} <does>,", "between {see} and {see},")
TAILS = (", little by little", ", with a smile", ", slowly but surely", ", while {snd}", ", and {F} saw it", ", quietly",
         ", with a little sigh", " near {see}", " near {see}", " {spot}", " {spot}", " {spot}",
         ", while a <kind> {beast} <did>",
         ", and a <person> {folk} saw it", " next to a <look> {thing}", " in front of <number> {beasts}", ", humming a song",
         ", and the {folk} nodded", ", and a <kind> {beast} saw it", " between {see} and {see}", ", and then {snd}",
         ", and looked at {see}", ", and the {beasts} were quiet", ", and the {folk} from {town} looked on")
# Before a noun now and then, for the same reason: words that fit any thing or sight and contradict none of their own.
GENERIC = ("old", "little", "good", "lovely", "fine", "pretty", "beautiful")
NEAR = (*GENERIC, "quiet", "familiar", "nearby", "well-known", "handsome", "peaceful", "splendid")
CLASHES = {"old": "new young fresh", "little": "big giant tall huge great large long high wide small tiny heavy",
           "pretty": "ugly plain", "beautiful": "ugly", "good": "bad muddy rotten",
           "quiet": "roaring loud noisy busy", "peaceful": "roaring loud noisy busy", "nearby": "far distant"}
PLAIN_BEATS = {"open", "trait", "object", "end", "keepobj", "scene", "talk", "origin", "setting"}
# A sentence of one action, which may be given a tail: not one that says how things were.
ACTION = re.compile(r"(?!.*\b(was|were|had|could|liked|lived|knew|not|felt|never|bed|until|called)\b)"
                    r"(\{([HFE]|f?he)\}|they) [^.:]*\.$")
SPEECH = re.compile(r'(.)" (said|asked|whispered|called|cried) (\{([HFE])\})(?=\.|, and)')
VERBS = {"said": ("said", "said", "said", "murmured", "declared", "remarked", "put in", "announced", "added"),
         "asked": ("asked", "asked", "wondered", "inquired"), "called": ("called", "shouted"), "cried": ("cried", "exclaimed"),
         "whispered": ("whispered", "breathed")}
GLANCES = {"scene", "talk", "aid", "setting", "trait"}
SCENE = {"snd": "sounds", "smell": "smells", "thing": "things", "beast": "beasts", "folk": "folk", "plants": "plants"}
BESIDE = ("near", "behind", "beside", "next to", "in front of", "not far from", "close to")


class Story:
    """One story's world and its text. The world stays, so that questions about the story can be answered from it."""

    def __init__(self, rng: Dice, hero: str | None = None, hero_name: str | None = None, friend: str | None = None,
                 obj: str | None = None, place: str | None = None, plot: str | None = None, length: str | None = None):
        self.rng = rng
        self.hero = Character(rng, hero, hero_name, avoid=(friend,), plain=hero_name is None and rng.flip(0.15))
        self.friend = Character(rng, friend, avoid=[self.hero.kind, self.hero.name], plain=rng.flip(0.2))
        self.obj = obj or rng.choice(list(OBJECTS))
        at_sea = {self.hero.kind, self.friend.kind} & set(WORLD["water_animals"])
        self.place = place or rng.choice([p for p in PLACES if not at_sea or "water" in PLACES[p]["tags"]])
        self.adjective = rng.choice(OBJECTS[self.obj]["adjectives"])
        self.tags = {*PLACES[self.place]["tags"], OBJECTS[self.obj]["kind"],
                     "animal" if self.hero.kind in ANIMALS else "person"}
        self.plot = plot or rng.choice([p for p in PLOTS if PLOTS[p].fits(self.tags)])
        self.length = length or rng.weighted(("short", "medium", "long"), (0.25, 0.5, 0.25))
        self.words: dict[str, str] = {}      # those that the plot drew
        self.introduced: set[str] = set()    # letters of the persons that were brought in
        self.has = False                     # the object, just now
        self.templates: list[str] = []       # which line of beats.txt every piece came from
        self.text = self._write()

    # The rest of the world is drawn when a sentence first asks for it.
    @cached_property
    def elder(self) -> Character:
        taken = [self.hero.kind, self.hero.name, self.friend.kind, self.friend.name]
        kind = self.rng.choice([kind for kind in ELDERS if kind not in taken])
        return Character(self.rng, kind, avoid=taken, plain=self.rng.flip(0.7))

    @cached_property
    def season(self) -> str:
        if season := PLOTS[self.plot].season:
            return season
        if "cold" in self.tags:
            return "winter"
        return str(self.rng.choice(("spring", "summer") if "warm" in self.tags else list(WORLD["seasons"])))

    @cached_property
    def weather(self) -> str:
        return str(self.rng.choice(WORLD["weather"][self.season]))

    @cached_property
    def sky(self) -> str:
        return str(self.rng.choice(WORLD["skies"]["fair" if self.weather in FAIR else "gray"]))

    @cached_property
    def color(self) -> str:
        return str(self.rng.choice(WORLD["colors"]))

    @cached_property
    def food(self) -> str:
        return str(self.rng.choice([food for food in WORLD["foods"] if self.obj not in food]))

    @cached_property
    def town(self) -> str:
        return self.rng.choice(POOLS["town"])

    @cached_property
    def goal(self) -> str:
        """The sight that the plot is about."""
        return "the " + without_article(self.rng.choice(PLACES[self.place]["sights"]))

    def _write(self) -> str:
        rng, plot = self.rng, PLOTS[self.plot]
        chance, glance = {"short": (0.06, 0.6), "medium": (0.25, 0.85), "long": (0.5, 0.95)}[self.length]

        def maybe(name: str, p: float = chance) -> list[str]:
            return [name] if rng.flip(p) else []

        def if_fits(name: str, p: float = chance) -> list[str]:
            return maybe(name, p) if name in plot.flags else []

        def mixed(*beats: str) -> list[str]:
            return rng.some(beats, len(beats))

        together = 0.0 if "apart" in plot.flags else 1.0  # hero and friend do not chat while they are apart
        opening = ["open", *mixed(*maybe("trait"), *maybe("setting"), *maybe("scene", glance), *maybe("scene", glance / 3)),
                   "object", *maybe("origin", 0.75), *maybe("scene", glance)]
        first = ["meet", *maybe("talk", glance), plot.beats[0], *if_fits("sad", chance + 0.2), *if_fits("ask", chance + 0.2)]
        if first[-1] == "ask":
            first += maybe("answer", 0.5)
        middle = [*if_fits("plan", chance + 0.2), *mixed(*maybe("setting"), *maybe("scene", glance)), plot.beats[1],
                  *maybe("talk", glance * together), *plot.beats[2:-1],
                  *maybe("aid", 0.0 if self.plot == "lost" else (chance + 0.3) * together)]
        closing = [*mixed(*maybe("scene", glance / 2), *maybe("talk", glance / 3 * together)), plot.beats[-1],
                   *mixed(*maybe("happy", chance + 0.2), *if_fits("thanks", chance + 0.2), *maybe("talk", glance / 2)),
                   *maybe("keepobj", 0 if "gives" in plot.flags else chance), "end"]
        paragraphs = [opening, first, middle, closing]
        if self.length == "short":
            paragraphs = [opening + first, middle + closing]
        return "\n\n".join(" ".join(self._say(beat) for beat in beats) for beats in paragraphs if beats)

    def _say(self, beat: str) -> str:
        line = self.rng.choice(self._possible(beat))
        self.templates.append(line.text)
        if beat in ("object", "lost1", "lost3"):
            self.has = beat != "lost1"
        text = SPEECH.sub(self._speech, expand(self.rng, line.text))
        text = expand(self.rng, self._loosen(beat, text))
        said: set[str] = set()  # no scene word comes twice in a sentence
        while (filled := re.sub(r"\{(\w+)\}", lambda m: self._slot(m.group(1), said), text)) != text:
            text = filled
        return sentence_case(re.sub(r"\b([Aa]) (?=[aeio]|un[^i]|hon|hour)", r"\1n ", text))

    def _possible(self, beat: str) -> list[Line]:
        """The lines that fit this story and were not used in it; any that fit, when all were used."""
        lines = [line for line in BEATS[beat] if line.only <= self.tags]
        if not self.has and beat in GLANCES:
            lines = [line for line in lines if not re.search(r"\{(O|Oi|feat|use)\}", line.text)]
        return [line for line in lines if line.text not in self.templates] or lines

    def _speech(self, match: re.Match[str]) -> str:
        """One of the words for `said`, and sometimes how it was said, or a gesture."""
        before, verb, who, letter = match.groups()
        verb = "asked" if before == "?" and verb == "said" else verb
        tag = f'{before}" {self.rng.choice(VERBS[verb])} {who}'
        more = self.rng.weighted(("", " <way>", " and <gesture>"), (0.22, 0.43, 0.35))
        own = {"H": "", "F": "f", "E": "e"}[letter]
        return tag + re.sub(r"\{(his|him)\}", rf"{{{own}\1}}", expand(self.rng, more))

    def _loosen(self, beat: str, text: str) -> str:
        """Sometimes a few loose words in front of a sentence without speech, sometimes a few at its end."""
        if beat in PLAIN_BEATS or '"' in text or "?" in text:
            return text
        if not ACTION.match(text):
            return text
        if not re.search(", (and|but|so|because) ", text) and self.rng.flip(0.6):
            return text[:-1] + self.rng.choice(TAILS) + "."
        if self.rng.flip(0.6):
            return f"{self.rng.choice(OPENERS)} {text}"
        if self.rng.flip(0.3):
            who, rest = text.split(" ", 1)
            return text if rest.startswith("and ") else f"{who} <adv> {rest}"
        return text

    def _generic(self, beside: str, words: tuple[str, ...] = GENERIC) -> str:
        """Often nothing, else a generic adjective and a space: none that repeats or contradicts the words `beside` it."""
        if not self.rng.flip(0.5):
            return ""
        word = self.rng.choice(words)
        return "" if {word, *CLASHES.get(word, "").split()} & set(beside.split()) else word + " "

    def _draw(self, words: list[str], said: set[str]) -> str:
        word = self.rng.choice([word for word in words if word not in said] or words)
        said.add(word)
        return word

    def _person(self, name: str) -> str | None:
        """A pronoun ({fhis}), a name ({F}), an introduction ({Fi}) or a short name ({Fs}) of hero, friend or elder."""
        for prefix, letter, who in (("", "H", "hero"), ("f", "F", "friend"), ("e", "E", "elder")):
            if name in (prefix + "he", prefix + "him", prefix + "his"):
                return str(getattr(getattr(self, who), name[len(prefix):]))
            if name in (letter, letter + "i", letter + "s", letter + "v"):
                character: Character = getattr(self, who)
                if name[1:] == "v":  # spoken to
                    return str(character.name) if character.named else "my friend"
                brought_in = letter in self.introduced
                self.introduced.add(letter)
                if name == letter + "i" or not brought_in:
                    return character.intro()
                return character.ref() if name == letter else character.short()
        return None

    def _spot(self, said: set[str]) -> str:
        """Where something is: one of the place's own, or beside a thing or sight of the place."""
        place = PLACES[self.place]
        kind = self.rng.weighted(("spot", "thing", "sight"), (0.3, 0.4, 0.3))
        if kind == "spot":
            return self._draw(place["spots"], said)
        if kind == "sight":
            near = without_article(self._draw(place["sights"], said))
            return f"{self.rng.choice(BESIDE)} the {self._generic(near, NEAR)}{near}"
        look = self.rng.choice(POOLS["look"]) + " " if self.rng.flip(0.7) else ""
        return f"{self.rng.choice(BESIDE)} {with_article(look + self._draw(place['things'], said))}"

    def _slot(self, name: str, said: set[str]) -> str:
        rng, place, obj, info = self.rng, PLACES[self.place], OBJECTS[self.obj], self.hero.info
        person = self._person(name)
        if person is not None:
            return person
        if name in PLOTS[self.plot].words:
            if name not in self.words:
                word = expand(rng, rng.choice(PLOTS[self.plot].words[name]))
                self.words[name] = re.sub(r"\{(\w+)\}", lambda m: self._slot(m.group(1), said), word)
            return self.words[name]
        if name == "spot":
            return self._spot(said)
        if name in SCENE:
            return self._draw(place[SCENE[name]], said)
        match name:
            case "things" | "beasts":
                return plural(self._draw(place[name], said))
            case "see":
                sight = without_article(self._draw(place["sights"], said))
                return f"the {self._generic(sight, NEAR)}{sight}"
            case "O":
                return self._generic(self.adjective) + self.obj
            case "Oi":
                return with_article(f"{self._generic(self.adjective)}{self.adjective} {self.obj}")
            case "feat":
                return rng.skewed(obj["features"])
            case "seasd":
                return self._draw(WORLD["seasons"][self.season], said)
            case "food":
                if self.food in said:
                    return self._draw(WORLD["foods"], said)
                said.add(self.food)
                return self.food
            case "far":
                return self._draw(POOLS["town"], said)
            case "name":
                taken = {self.hero.name, self.friend.name, *said}
                return self._draw([name for name in WORLD["female"] + WORLD["male"] if name not in taken], said)
            case "home":
                home = str(info["home"])
                return f"at {home}" if home.startswith("the edge") else f"in {home}"
        fixed = {"oa": self.adjective, "use": obj["use"], "pp": place["phrase"], "place": self.place}
        if name in fixed:
            return str(fixed[name])
        if name in ("kind", "eats", "body"):
            return str(self.hero.kind if name == "kind" else info[name])
        if name in ("season", "town", "goal", "sky"):
            return str(getattr(self, name))
        if name in ("col", "w"):
            return self.color if name == "col" else self.weather
        raise KeyError(f"beats.txt uses the unknown slot {name!r}")
