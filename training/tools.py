"""Conversations with tools, in Qwen's (Hermes) format: which tool, with which arguments, and what its response means.

The names of tools and arguments are drawn anew for every conversation, made-up words among them, so that they must be read
and copied: no weight can know them. Some names are kept for the judge.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.dice import Dice
from training.grammar import ANIMALS, OBJECTS, PEOPLE, PLACES, POOLS, WORLD, expand, with_article
from training.key_names import another_name, made_up
from training.render import Message, assistant, conversation, system, user

Values = dict[str, Any]
NAMES = WORLD["female"] + WORLD["male"]
SKIES = ("sunny", "rainy", "windy", "foggy", "stormy", "warm", "cold", "cloudy", "snowy")


@dataclass(frozen=True)
class Argument:
    names: tuple[str, ...]     # the last one is only asked for by the judge
    about: str
    draw: Callable[[Dice], Any]
    type: str = "string"
    enum: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Tools that do one thing: what they may be called, what they take, how one asks for it and what comes back."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    about: str
    arguments: dict[str, Argument]
    asks: tuple[str, ...]
    respond: Callable[[Dice, Values], Values]
    answers: tuple[str, ...]


def _names(*names: str, about: str, pool: Any = NAMES) -> Argument:
    return Argument(names, about, lambda rng: rng.choice(pool))


def _number(*names: str, about: str, low: int = 1, high: int = 20) -> Argument:
    return Argument(names, about, lambda rng: rng.whole(low, high), "integer")


TOWN = _names("town", "city", "place", "location", "where", about="the name of the town", pool=POOLS["town"])
PERSON = _names("name", "person", "who", "villager", "friend", about="the name of the person")
THING = _names("thing", "object", "item", "what", "article", about="the name of the thing", pool=list(OBJECTS))
FOOD = _names("food", "dish", "meal", "order", "item", about="what to eat", pool=WORLD["foods"])
KINDS = [*ANIMALS, *PEOPLE]
FAMILIES = {
    "weather": Family(
        ("get", "check", "read", "find", "show"), ("weather", "forecast", "weather_report", "sky"),
        "Tells the weather of a town.", {"town": TOWN},
        ("What is the weather like in {town}?", "How is the weather in {town}?", "Is the weather good in {town} today?"),
        lambda rng, v: {"weather": rng.choice(SKIES), "degrees": rng.whole(0, 30)},
        ("It is {weather} in {town}, with {degrees} degrees.", "In {town} it is {weather}, and there are {degrees} degrees.")),
    "forecast": Family(
        ("predict", "foresee", "guess", "look_up"), ("weather", "rain", "day_weather", "sky"),
        "Tells what the weather of a town will be on a day.",
        {"town": TOWN, "day": Argument(("day", "weekday", "when", "date"), "the day of the week",
                                       lambda rng: rng.choice(WORLD["days"]), enum=tuple(WORLD["days"]))},
        ("What will the weather be in {town} on {day}?", "How will the weather be on {day} in {town}?"),
        lambda rng, v: {"weather": rng.choice(SKIES)}, ("On {day} it will be {weather} in {town}.",)),
    "owner": Family(
        ("find", "get", "look_up", "ask"), ("owner", "who_owns", "keeper", "holder"), "Finds out who owns a thing.",
        {"thing": THING}, ("Who owns the {thing}?", "Whose is the {thing}?", "Do you know who has the {thing}?"),
        lambda rng, v: {"owner": rng.choice(NAMES), "kind": rng.choice(KINDS)},
        ("{owner} the {kind} owns the {thing}.", "The {thing} belongs to {owner} the {kind}.")),
    "home": Family(
        ("find", "get", "look_up", "locate"), ("home", "house", "address", "villager"), "Tells where a person lives.",
        {"name": PERSON}, ("Where does {name} live?", "Where can I find {name}?", "Where is the home of {name}?"),
        lambda rng, v: {"place": PLACES[rng.choice(list(PLACES))]["phrase"], "house": rng.choice(WORLD["colors"])},
        ("{name} lives {place}, in a {house} house.",)),
    "age": Family(
        ("get", "find", "tell", "look_up"), ("age", "years", "birthday", "person"), "Tells how old a person is.",
        {"name": PERSON}, ("How old is {name}?", "What is the age of {name}?", "How many years old is {name}?"),
        lambda rng, v: {"years": rng.whole(2, 99)}, ("{name} is {years} years old.",)),
    "price": Family(
        ("get", "find", "ask", "check"), ("price", "cost", "market_price", "offer"), "Tells what a thing costs at the market.",
        {"thing": THING, "number": _number("number", "count", "how_many", "amount", "quantity", about="how many of them")},
        ("What do I pay for {number} of the {thing}?", "How much is the {thing}, if I take {number}?"),
        lambda rng, v: {"coins": rng.whole(1, 9) * v["number"]}, ("That costs {coins} coins.", "You pay {coins} coins.")),
    "sum": Family(
        ("add", "sum", "count", "calculate"), ("numbers", "up", "sum", "together"), "Adds two numbers.",
        {"first": _number("a", "first", "x", "left", "number_one", about="the first number", high=99),
         "second": _number("b", "second", "y", "right", "number_two", about="the second number", high=99)},
        ("What is {first} plus {second}?", "How much is {first} and {second} together?", "Add {first} and {second}."),
        lambda rng, v: {"result": v["first"] + v["second"]}, ("{first} plus {second} is {result}.",)),
    "message": Family(
        ("send", "write", "post", "deliver"), ("message", "letter", "note", "postcard"), "Sends a message to a person.",
        {"name": _names("to", "name", "receiver", "person", "friend", about="who gets the message"),
         "text": Argument(("text", "message", "words", "body", "content"), "what the message says", lambda rng: expand(
             rng, "[the <object> is here|I am in <town>|there is <food>|I will come on <day>|the <being> is well]"))},
        ("Tell {name} that {text}.", "Please let {name} know that {text}.", "Send word to {name} that {text}."),
        lambda rng, v: {"sent": True}, ("I have told {name}.", "Done: {name} knows it now.")),
    "order": Family(
        ("order", "buy", "cook", "bring"), ("food", "meal", "dish", "lunch"), "Orders something to eat.",
        {"food": FOOD, "number": _number("plates", "number", "for_how_many", "portions", "servings", about="how many plates",
                                         high=12)},
        ("I would like {number} plates of {food}.", "Please get us {number} plates of {food}."),
        lambda rng, v: {"minutes": rng.whole(5, 60)}, ("Your {food} will be ready in {minutes} minutes.",)),
    "distance": Family(
        ("get", "measure", "find", "look_up"), ("distance", "way", "route", "miles"), "Tells how far it is between two towns.",
        {"from": _names("from", "start", "origin", "here", "town_one", about="where the way begins", pool=POOLS["town"]),
         "to": _names("to", "goal", "destination", "there", "town_two", about="where the way ends", pool=POOLS["town"])},
        ("How far is it from {from} to {to}?", "How many miles is {from} from {to}?"),
        lambda rng, v: {"miles": rng.whole(2, 99)}, ("From {from} to {to} it is {miles} miles.",)),
    "book": Family(
        ("find", "search", "look_up", "get"), ("book", "story", "tale", "title"), "Finds a book in the library.",
        {"topic": _names("topic", "about", "subject", "hero", "theme", about="what the book is about", pool=KINDS)},
        ("Is there a book about a {topic}?", "Find me a book about a {topic}.", "I am looking for a book about a {topic}."),
        lambda rng, v: {"title": f"The {rng.choice(POOLS['lively']).capitalize()} {v['topic'].capitalize()}",
                        "pages": rng.whole(8, 99)},
        ('There is "{title}". It has {pages} pages.',)),
    "alarm": Family(
        ("set", "start", "make", "add"), ("alarm", "reminder", "bell", "timer"), "Wakes somebody at an hour.",
        {"hour": _number("hour", "time", "at", "clock", "when", about="the hour", high=12), "name": PERSON},
        ("Wake {name} at {hour} o'clock.", "Please wake {name} at {hour}.", "{name} wants to be woken at {hour} o'clock."),
        lambda rng, v: {"set": True}, ("I will wake {name} at {hour} o'clock.",)),
}
NO_TOOL = ("[I have no tool for that, so I do not know.|None of my tools can tell me that.|"
           "I cannot find that out with my tools.]")


def reserved(verb: str, noun: str) -> bool:
    """Names that only the judge gives to tools: about one in six."""
    return (sum(map(ord, verb)) * 5 + sum(map(ord, noun)) * 11) % 6 == 0


@dataclass
class Tool:
    """One tool of one conversation: a family with drawn names."""

    family: Family
    name: str
    names: dict[str, str]  # role -> the argument's name
    schema: Message

    def call(self, values: Values) -> Message:
        return {"type": "function", "function": {"name": self.name,
                                                 "arguments": {self.names[role]: value for role, value in values.items()}}}


def make_tool(rng: Dice, family: Family, unseen: bool = False) -> Tool:
    pairs = [(v, n) for v in family.verbs for n in family.nouns if reserved(v, n) == unseen]
    if not pairs or rng.flip(0.25 if unseen else 0.35):
        name = (made_up(rng) if unseen else another_name(rng)) + (f"_{rng.choice(family.nouns)}" if rng.flip(0.3) else "")
    else:
        verb, noun = rng.choice(pairs)
        name = f"{verb}_{noun}" if rng.flip(0.85) else verb + noun.title().replace("_", "")
    names: dict[str, str] = {}
    properties: Message = {}
    for role, argument in family.arguments.items():
        free = [n for n in (argument.names[-1:] if unseen else argument.names[:-1]) if n not in names.values()]
        if unseen:
            names[role] = rng.choice(free) if free and rng.flip(0.85) else made_up(rng)
        else:
            names[role] = rng.choice(free) if free and rng.flip(0.6) else another_name(rng, names.values())
        said: Message = {"type": argument.type, "description": argument.about}
        if argument.enum and rng.flip(0.5):
            said["enum"] = list(argument.enum)
        properties[names[role]] = dict(reversed(said.items())) if rng.flip(0.2) else said
    schema = {"type": "function", "function": {
        "name": name, "description": family.about,
        "parameters": {"type": "object", "properties": properties, "required": list(properties)}}}
    return Tool(family, name, names, schema)


def values_for(rng: Dice, family: Family) -> Values:
    values: Values = {}
    for role, argument in family.arguments.items():
        while (value := argument.draw(rng)) in values.values() and argument.type == "string":
            pass
        values[role] = value
    return values


@dataclass
class ToolCase:
    """A conversation with tools. wanted: the calls that the first answer must make, none where it must just answer."""

    messages: list[Message]
    tools: list[Message]
    wanted: list[Message]
    asked: int  # index of the answer that `wanted` is about


def tool_case(rng: Dice, unseen: bool = False, thoughts: bool = False, need: str | None = None) -> ToolCase:
    """need: one (call), two (calls at once) or none, which answers without; drawn when it is not given."""
    need = need or rng.weighted(("one", "two", "none"), (0.62, 0.2, 0.18))
    chosen = rng.some(list(FAMILIES), rng.weighted((1, 2, 3, 4), (0.25, 0.35, 0.25, 0.15)))
    tools = [make_tool(rng, FAMILIES[name], unseen) for name in chosen]
    while len({tool.name for tool in tools}) < len(tools):
        tools = [make_tool(rng, FAMILIES[name], unseen) for name in chosen]
    messages = system(rng.choice((None, None, "You are a helpful assistant.", "You are Tiny, a small language model.")))
    asked = len(messages) + 1
    if need == "none":
        question, answer, thought = _without_a_tool(rng, chosen)
        messages += [user(question), assistant(answer, thought if thoughts else None)]
        return ToolCase(messages, [tool.schema for tool in tools], [], asked)
    used = [rng.choice(tools)] if need == "one" else [rng.choice(tools), rng.choice(tools)]
    first = exchange(rng, used, thoughts)
    wanted = first[1]["tool_calls"]
    messages += first
    while not thoughts and rng.flip(0.25):  # and another question
        messages += exchange(rng, [rng.choice(tools)], thoughts)
    if not thoughts and rng.flip(0.1):
        messages += [user(expand(rng, "[Thank you!|Thanks.|That is good to know.]")),
                     assistant(expand(rng, "[You are welcome.|I am glad to help.|Ask me again.]"))]
    return ToolCase(messages, [tool.schema for tool in tools], wanted, asked)


def exchange(rng: Dice, used: list[Tool], thoughts: bool) -> list[Message]:
    """A question, the calls, the responses and the answer."""
    rounds = []
    for tool in used:
        values = values_for(rng, tool.family)
        response = tool.family.respond(rng, values)
        question, answer = (rng.choice(forms).format(**values | response) for forms in (tool.family.asks, tool.family.answers))
        rounds.append((tool, values, response, question, answer))
    questions = [question for *_, question, _ in rounds]
    asked = questions[0] if len(rounds) == 1 else f"{questions[0]} And: {questions[1]}"
    call: Message = {"role": "assistant", "content": "", "tool_calls": [tool.call(values) for tool, values, *_ in rounds]}
    answer = assistant(" ".join(answer for *_, answer in rounds))
    if thoughts:
        names = " and ".join(dict.fromkeys(tool.name for tool, *_ in rounds))
        call["reasoning_content"] = expand(rng, f"[I need {names} for this.|{names} can tell me that.|I will call {names}.]")
        answer["reasoning_content"] = "Now I know: " + " ".join(json.dumps(response) for _, _, response, *_ in rounds)
    responses = [{"role": "tool", "content": json.dumps(response, ensure_ascii=False)} for _, _, response, *_ in rounds]
    return [user(asked), call, *responses, answer]


def _without_a_tool(rng: Dice, present: list[str]) -> tuple[str, str, str]:
    """A question that is answered without a call, because it needs none or because no tool fits; its answer and a thought."""
    absent = [name for name in FAMILIES if name not in present and not (name in ("weather", "forecast") and
                                                                        {"weather", "forecast"} & set(present))]
    if rng.flip(0.4):
        family = FAMILIES[rng.choice(absent)]
        question = rng.choice(family.asks).format(**values_for(rng, family))
        return question, expand(rng, NO_TOOL), "No tool does that."
    word, other = rng.some(rng.choice(WORLD["opposites"]), 2)
    animal = rng.choice(list(ANIMALS))
    question, answer = rng.choice((
        (f"What is the opposite of {word}?", f"The opposite of {word} is {other}."),
        (f"What is a baby {animal} called?", f"A baby {animal} is called {with_article(ANIMALS[animal]['baby'])}."),
        (f"What does {with_article(animal)} eat?", f"{with_article(animal).capitalize()} eats {ANIMALS[animal]['eats']}."),
        ("Hello! Who are you?", "I am Tiny, and I can use tools."),
        ("Good morning!", "Good morning! What shall I do for you?")))
    return question, answer, "I need no tool for this."


def tool_chat(rng: Dice) -> str:
    """One training document; sometimes with a thought before every answer."""
    thoughts = rng.flip(0.15)
    case = tool_case(rng, thoughts=thoughts)
    return conversation(case.messages, case.tools)
