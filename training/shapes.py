"""Answers in JSON: a question about the village, a story or the world, and a schema for the answer, in words or as JSON Schema.

The answer is computed from the same world, is one line, validates, and names its keys as the schema does. Keys are drawn
anew, made-up ones (then described) among them, so that they must be copied from the prompt. Some are kept for the judge.
"""

import json
from dataclasses import dataclass
from typing import Any

from training.dice import Dice
from training.grammar import ANIMALS, PEOPLE, POOLS, WORLD, expand, with_article
from training.held_out import seen_story
from training.key_names import another_name, made_up
from training.render import Message, assistant, conversation, system, user
from training.stories import Story
from training.village import Village, Villager

# What can be told about somebody: the keys it goes by (the last is the judge's own), its type and what it is.
PERSON = {"name": (("name", "who", "villager", "called", "first_name"), "string", "the name"),
          "kind": (("kind", "species", "sort", "is_a", "creature"), "string", "what kind of being it is"),
          "house": (("house", "house_color", "color", "lives_in", "paint"), "string", "the color of the house"),
          "owns": (("owns", "thing", "object", "has", "belongings"), "string", "the thing that is owned"),
          "food": (("food", "likes", "eats", "favorite_food", "dish"), "string", "the food that is liked"),
          "age": (("age", "years", "years_old", "old", "age_in_years"), "integer", "the age in years")}
STORY = {"hero": (("hero", "main_character", "who", "about", "protagonist"), "string", "the kind of the hero"),
         "hero_name": (("name", "hero_name", "called", "named", "name_of_hero"), "string", "the name of the hero"),
         "friend": (("friend", "met", "other", "companion", "second_character"), "string", "the kind of the friend"),
         "place": (("place", "where", "setting", "location", "scene"), "string", "the place of the story"),
         "object": (("object", "thing", "item", "has", "possession"), "string", "the thing that the hero has"),
         "adjective": (("looks", "adjective", "thing_is", "like", "quality"), "string", "what the thing is like")}
Field = tuple[tuple[str, ...], str, str]


@dataclass
class JsonCase:
    """A conversation whose last answer is JSON. free: any answer that validates is right."""

    messages: list[Message]
    schema: Message
    answer: Any
    free: bool = False


def keys_for(rng: Dice, fields: dict[str, Field], chosen: list[str], unseen: bool) -> dict[str, str]:
    """Another key for each of the chosen fields, no two alike. unseen: the judge's own, which change for no training."""
    keys: dict[str, str] = {}
    for name in chosen:
        names = fields[name][0]
        free = [key for key in (names[-1:] if unseen else names[:-1]) if key not in keys.values()]
        if unseen:
            keys[name] = rng.choice(free) if free and rng.flip(0.85) else made_up(rng)
        else:
            keys[name] = rng.choice(free) if free and rng.flip(0.6) else another_name(rng, keys.values())
    return keys


def object_schema(rng: Dice, fields: dict[str, Field], keys: dict[str, str]) -> Message:
    """As people write them, or as pydantic does, with titles. A key that says nothing has a description."""
    titled, described = rng.flip(0.3), rng.flip(0.5)
    properties: Message = {}
    for name, key in keys.items():
        names, kind, about = fields[name]
        entry: Message = {"title": key.replace("_", " ").title()} if titled else {}
        if described or key not in names:
            entry["description"] = about
        entry["type"] = kind
        if name == "house" and rng.flip(0.2):
            entry["enum"] = WORLD["colors"]
        properties[key] = entry
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    if titled:
        schema = {"properties": properties, "required": list(properties), "title": made_up(rng).title(), "type": "object"}
    return schema | ({"additionalProperties": False} if rng.flip(0.25) else {})


def in_words(fields: dict[str, Field], keys: dict[str, str]) -> str:
    """The keys and, where a key does not say it, what they hold: for requests without a schema."""
    return ", ".join(key if key in fields[name][0] else f"{key} ({fields[name][2]})" for name, key in keys.items())


def json_case(rng: Dice, unseen: bool = False) -> JsonCase:
    make = rng.weighted((_villager, _villagers, _counted, _told, _known, _invented), (0.3, 0.18, 0.15, 0.17, 0.1, 0.1))
    case: JsonCase = make(rng, unseen)
    return case


def json_chat(rng: Dice) -> str:
    """One training document."""
    case = json_case(rng)
    if rng.flip(0.12):
        case.messages[-1] |= {"reasoning_content": expand(rng, "[The answer is JSON with the keys|I need the keys] ") +
                              ", ".join(_keys(case.answer)) + "."}
    return conversation(case.messages)


def _keys(answer: Any) -> list[str]:
    return list((answer[0] if isinstance(answer, list) else answer) or ())


def _dialogue(rng: Dice, facts: str | None, question: str, words: str, schema: Message, answer: Any,
              before: list[Message] | None = None) -> list[Message]:
    """Question and answer, with the shape asked for in words, by a schema in the question, or by one in the system prompt."""
    way = rng.weighted(("words", "question", "system"), (0.3, 0.45, 0.25))
    written = json.dumps(schema)
    head = facts or ""
    if way == "system":
        rules = expand(rng, "[Answer with JSON only. The schema:|Always answer in JSON that fits this schema:]")
        head = f"{head} {rules} {written}".strip()
    elif way == "words":
        ask = expand(rng, "[Answer in JSON with the keys|Give JSON with these keys:|As JSON, please, with the keys]")
        question += f" {ask} {words}."
    else:
        ask = expand(rng, "[Answer with JSON for this schema:|Use this JSON schema:|Your answer must fit this schema:]")
        question += f" {ask} {written}"
    return [*system(head), *(before or []), user(question), assistant(json.dumps(answer, ensure_ascii=False))]


def _about(who: Villager) -> dict[str, Any]:
    return {"name": who.name, "kind": who.kind, "house": who.house, "owns": who.owns, "food": who.food, "age": who.age}


def _villager(rng: Dice, unseen: bool) -> JsonCase:
    """One of the village, by name or by what only one of them has."""
    village = Village(rng, 2, 6, ages=rng.flip(0.6))
    who = rng.choice(village.villagers)
    known = [name for name, value in _about(who).items() if value is not None]
    chosen = rng.some(known, rng.whole(1, min(4, len(known))))
    keys = keys_for(rng, PERSON, chosen, unseen)
    question = rng.choice((f"Describe {who.name}.", f"Who is {who.name}?", f"Tell me about {who.name}.",
                           f"Who owns {with_article(who.owns)}?", f"Who lives in the {who.house} house?",
                           f"Write down what you know about {who.name}."))
    schema = object_schema(rng, PERSON, keys)
    answer = {key: _about(who)[name] for name, key in keys.items()}
    return JsonCase(_dialogue(rng, village.text, question, in_words(PERSON, keys), schema, answer), schema, answer)


def _villagers(rng: Dice, unseen: bool) -> JsonCase:
    """All of the village in an array, bare or under a key."""
    village = Village(rng, 2, 4, ages=rng.flip(0.6))
    known = [name for name, value in _about(village.villagers[0]).items() if value is not None]
    keys = keys_for(rng, PERSON, ["name", *rng.some([k for k in known if k != "name"], rng.whole(0, 2))], unseen)
    rows = [{key: _about(who)[name] for name, key in keys.items()} for who in village.villagers]
    schema: Message = {"type": "array", "items": object_schema(rng, PERSON, keys)}
    answer: Any = rows
    words = in_words(PERSON, keys)
    if rng.flip(0.4):
        outer = rng.choice(("villagers", "people", "list", "all", another_name(rng)) if not unseen else ("inhabitants",))
        schema = {"type": "object", "properties": {outer: schema}, "required": [outer]}
        answer = {outer: rows}
        words = f"{outer}, which is an array of objects with the keys {words}"
    question = rng.choice(("List all the villagers.", "Who lives in the village?", "Write down the whole village.",
                           "Make a list of everyone, in order."))
    return JsonCase(_dialogue(rng, village.text, question, words, schema, answer), schema, answer)


COUNTED = {"count": (("villagers", "count", "how_many", "number", "population"), "integer", "how many live there"),
           "there": (("there", "found", "lives_here", "yes", "is_present"), "boolean", "whether that one lives there"),
           "oldest": (("oldest", "eldest", "most_years", "grandest", "senior"), "string", "the name of the oldest")}


def _counted(rng: Dice, unseen: bool) -> JsonCase:
    """How many there are, whether a kind is among them, and who is oldest."""
    village = Village(rng, 2, 5, ages=True)
    here = [who.kind for who in village.villagers]
    kind = rng.choice(here) if rng.flip(0.5) else rng.choice([k for k in (*ANIMALS, *PEOPLE) if k not in here])
    oldest = max(village.villagers, key=lambda who: who.age or 0)
    told = {"count": len(here), "there": kind in here, "oldest": oldest.name}
    keys = keys_for(rng, COUNTED, rng.some(list(told), rng.whole(1, 3)), unseen)
    parts = {"count": "how many live in the village", "there": f"is there {with_article(kind)}", "oldest": "who is the oldest"}
    question = " and ".join(parts[name] for name in keys).capitalize() + "?"
    schema = object_schema(rng, COUNTED, keys)
    answer = {key: told[name] for name, key in keys.items()}
    return JsonCase(_dialogue(rng, village.text, question, in_words(COUNTED, keys), schema, answer), schema, answer)


def _told(rng: Dice, unseen: bool) -> JsonCase:
    """A story, then what it was about."""
    story = seen_story(rng, length="short") if not unseen else Story(rng, length="short")
    told = {"hero": story.hero.kind, "hero_name": story.hero.name, "friend": story.friend.kind, "place": story.place,
            "object": story.obj, "adjective": story.adjective}
    known = [name for name, value in told.items() if value is not None and value in story.text]
    keys = keys_for(rng, STORY, rng.some(known, rng.whole(1, min(4, len(known)))), unseen)
    ask = expand(rng, "[Tell me a short story.|A short story, please.|I would like a short story.]")
    question = expand(rng, "[What was the story about?|Sum the story up.|Who and what was in it?|What happened in it?]")
    schema = object_schema(rng, STORY, keys)
    answer = {key: told[name] for name, key in keys.items()}
    messages = _dialogue(rng, None, question, in_words(STORY, keys), schema, answer, [user(ask), assistant(story.text)])
    return JsonCase(messages, schema, answer)


def _known(rng: Dice, unseen: bool) -> JsonCase:
    """An animal or a sum: nothing but what the model knows."""
    animal = rng.choice(list(ANIMALS))
    info = ANIMALS[animal]
    x, y = rng.whole(0, 20), rng.whole(0, 20)
    if rng.flip(0.5):
        fields: dict[str, Field] = {
            "animal": (("animal", "name", "what", "who", "creature"), "string", "the animal"),
            "home": (("home", "lives", "where", "place", "dwelling"), "string", "where it lives"),
            "eats": (("eats", "food", "likes", "diet", "nourishment"), "string", "what it eats"),
            "baby": (("baby", "young", "child", "little_one", "offspring"), "string", "what its baby is called")}
        told: dict[str, Any] = {"animal": animal, "home": info["home"], "eats": info["eats"], "baby": info["baby"]}
        question = rng.choice((f"Tell me about the {animal}.", f"What do you know about the {animal}?"))
    else:
        fields = {"x": (("a", "x", "first", "left", "first_number"), "integer", "the first number"),
                  "y": (("b", "y", "second", "right", "second_number"), "integer", "the second number"),
                  "sum": (("sum", "result", "total", "answer", "both_together"), "integer", "the sum of the two")}
        told = {"x": x, "y": y, "sum": x + y}
        question = rng.choice((f"What is {x} plus {y}?", f"Add {x} and {y}.", f"How much is {x} and {y}?"))
    keys = keys_for(rng, fields, rng.some(list(fields), rng.whole(1, len(fields))), unseen)
    schema = object_schema(rng, fields, keys)
    answer = {key: told[name] for name, key in keys.items()}
    return JsonCase(_dialogue(rng, None, question, in_words(fields, keys), schema, answer), schema, answer)


def _invented(rng: Dice, unseen: bool) -> JsonCase:
    """Somebody new: any name, any age, as long as it fits the schema."""
    kind = rng.choice([*ANIMALS, *PEOPLE])
    told = {"name": rng.choice(WORLD["female"] + WORLD["male"]), "kind": kind, "house": rng.choice(WORLD["colors"]),
            "food": rng.choice(WORLD["foods"]), "age": rng.whole(2, 99)}
    keys = keys_for(rng, PERSON, rng.some(list(told), rng.whole(2, 4)), unseen)
    schema = object_schema(rng, PERSON, keys)
    answer = {key: told[name] for name, key in keys.items()}
    question = expand(rng, f"[Invent|Make up|Think of|Describe] {with_article(kind)}[| from {rng.choice(POOLS['town'])}].")
    messages = _dialogue(rng, None, question, in_words(PERSON, keys), schema, answer)
    return JsonCase(messages, schema, answer, free=True)
