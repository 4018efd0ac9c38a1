"""Conversations in Qwen's chat format: requests for stories, questions about them, look-ups, facts, sums, lists, poems.

Every answer is computed from the same world that wrote the question, so it is right by construction.
"""

from dataclasses import dataclass
from random import Random

from training.stories import ANIMALS, OBJECTS, PEOPLE, PLACES, WORLD, Character, Story, expand, skewed, with_article

START, END = "<|im_start|>", "<|im_end|>"
SHORT_SYSTEM = ("You are a helpful assistant.", "You are a friendly storyteller.", "You tell short stories to children.",
                "You are Tiny, a small language model.", "You are a patient teacher.", "You write simple English.",
                "You are a kind storyteller. You tell short stories for children in simple words.")
RULES = ("You are a kind storyteller.", "You tell short stories for children in simple words.", "Use short sentences.",
         "Every story has a hero, a small trouble and a happy end.", "Never be rude.", "Be kind to everyone.",
         "When someone asks for a story, use what they ask for.", "When someone asks a question, answer it in one sentence.",
         "Do not tell sad stories at night.", "You live in a notebook.", "You like words that are easy to read.",
         "You know many animals and where they live.", "You can add small numbers.", "Name the hero early in the story.",
         "Keep the hero the same until the end.", "If you do not know something, say so.", "You never use hard words.",
         "The children who listen are five years old.", "A story should be fun to read aloud.", "You answer quickly.",
         "Friends help each other in your stories.", "You never tell anyone a secret.", "You like rain and old books.",
         "You speak like a good teacher.", "You never get tired of questions.", "A good story has a beginning and an end.",
         "You are polite and you say thank you.", "You remember what was said before.", "You keep your answers short.",
         "You tell stories about animals, people and things.", "You love music and the sea.", "You do not make lists of rules.")
SIGN_OFFS = ("Stay curious.", "Sleep well.", "The end.", "See you soon.", "Be kind.", "Keep reading.")


@dataclass
class Request:
    """A story request and what an answer must contain. The judge uses the same class on held-out combinations."""

    text: str
    wanted: list[str]   # words the story must name
    story: dict         # arguments for Story
    hero: str | None = None
    hero_name: str | None = None


def held_out(hero: str, obj: str) -> bool:
    """Combinations that training never asks for: about one in twelve."""
    return (sum(map(ord, hero)) * 7 + sum(map(ord, obj)) * 13) % 12 == 0


def story_request(rng: Random, unseen: bool = False) -> Request:
    """A request drawn from many wordings; `unseen` draws only hero and object pairs that training holds out."""
    while True:
        hero = rng.choice(list(ANIMALS) if rng.random() < 0.75 else list(PEOPLE))
        obj = rng.choice(list(OBJECTS))
        if held_out(hero, obj) == unseen:
            break
    place, friend = rng.choice(list(PLACES)), rng.choice([a for a in ANIMALS if a != hero])
    name = rng.choice(WORLD["female"] + WORLD["male"])
    if PEOPLE.get(hero, {}).get("gender", "b") != "b":
        name = rng.choice(WORLD["female" if PEOPLE[hero]["gender"] == "f" else "male"])
    length = rng.choices((None, "short", "long"), (0.7, 0.2, 0.1))[0]
    story = expand(rng, {None: "[story|little story|nice story|tale]", "short": "short story", "long": "long story"}[length])
    ask = expand(rng, "[Tell me|Please tell me|Can you tell me|Write|Please write|Make up|I would like|Give me]")
    end = "?" if ask.startswith("Can") else "."
    named = f"{with_article(hero)} {skewed(rng, ('named', 'called'))} {name}"
    where = PLACES[place]["phrase"]
    h, o = with_article(hero), with_article(obj)
    kinds = [(40, f"about {h} and {o}", [hero, obj], dict(hero=hero, obj=obj)),
             (10, f"about {h}", [hero], dict(hero=hero)),
             (10, f"about {h} {where}", [hero, place], dict(hero=hero, place=place)),
             (12, f"about {h} and {o} {where}", [hero, obj, place], dict(hero=hero, obj=obj, place=place)),
             (10, f"about {named}", [hero, name], dict(hero=hero, hero_name=name)),
             (10, f"about {named} and {o}", [hero, name, obj], dict(hero=hero, hero_name=name, obj=obj)),
             (5, f"about {h} and {with_article(friend)}", [hero, friend], dict(hero=hero, friend=friend)),
             (3, f"about {o}", [obj], dict(obj=obj))]
    _, about, wanted, given = rng.choices(kinds, [k[0] for k in kinds])[0]
    return Request(f"{ask} {with_article(story)} {about}{end}", wanted, given | dict(length=length), given.get("hero"),
                   given.get("hero_name"))


def render(turns: list[tuple[str, str]], system: str | None = None) -> str:
    head = f"{START}system\n{system}{END}\n" if system else ""
    return head + "".join(f"{START}user\n{u}{END}\n{START}assistant\n{a}{END}\n" for u, a in turns)


def system_prompt(rng: Random) -> str | None:
    """None, a line, or a page of rules in random order (prefix caching needs prompts longer than a block)."""
    kind = rng.random()
    if kind < 0.4:
        return None
    if kind < 0.85:
        return rng.choice(SHORT_SYSTEM)
    return " ".join(rng.sample(RULES, rng.randint(3, 28)))


def story_chat(rng: Random) -> str:
    request = story_request(rng)
    while True:
        story = Story(rng, **request.story)
        if all(w in story.text for w in request.wanted) and not held_out(story.hero.kind, story.obj):
            break
    turns = [(request.text, story.text)]
    questions = questions_about(rng, story)
    turns += rng.sample(questions, rng.choices((0, 1, 2, 3), (0.45, 0.25, 0.18, 0.12))[0])
    system = system_prompt(rng)
    if rng.random() < 0.12:
        sign_off = rng.choice(SIGN_OFFS)
        system = f"{system or 'You are a storyteller.'} {skewed(rng, ('End every answer with', 'Always finish with'))}: {sign_off}"
        turns = [(u, f"{a} {sign_off}") for u, a in turns]
    return render(turns, system)


def questions_about(rng: Random, story: Story) -> list[tuple[str, str]]:
    hero, place = story.hero, PLACES[story.place]["phrase"]
    who = hero.short() if hero.named else f"the {hero.kind}"
    pairs = [("[Where|In what place] did the story happen?", f"It happened {place}."),
             ("Who was the [hero|main character]?", f"It was {who} the {hero.kind}." if hero.named else f"It was {who}."),
             (f"What did {who} have?", f"{hero.he.capitalize()} had {with_article(story.obj)}."),
             (f"What was the {story.obj} like?", f"The {story.obj} was {story.adjective}."),
             ("[What season was it|When did it happen]?", f"It was {story.season}."),
             (f"Who did {who} meet?", f"{hero.he.capitalize()} met {story.friend.short()}"
              + (f" the {story.friend.kind}." if story.friend.named else "."))]
    if hero.named:
        pairs.append((f"What kind of [animal|person|hero] was {hero.name}?".replace("animal|person|hero", "hero"),
                      f"{hero.name} was {with_article(hero.kind)}."))
    return [(expand(rng, q), a) for q, a in pairs if "season" not in a or story.season in story.text]


def lookup_chat(rng: Random) -> str:
    """Facts of a made-up village in the system prompt, asked back: the answer is nowhere but in the context."""
    people = []
    for _ in range(rng.randint(2, 7)):
        people.append(Character(rng, avoid=[x for p in people for x in (p.kind, p.name)]))
    facts, ask = [], []
    for p in people:
        color, obj, food = rng.choice(WORLD["colors"]), rng.choice(list(OBJECTS)), rng.choice(WORLD["foods"])
        facts.append(expand(rng, f"{p.name} the {p.kind} [lives in|has] the {color} house, [owns|keeps] {with_article(obj)} "
                                 f"and likes {food}."))
        ask += [(f"What color is {p.name}'s house?", f"It is {color}."), (f"What does {p.name} own?", f"{p.name} owns {with_article(obj)}."),
                (f"What does {p.name} like to eat?", f"{p.name} likes {food}."), (f"Who is {p.name}?", f"{p.name} is {with_article(p.kind)}."),
                (f"Who owns {with_article(obj)}?", f"{p.name} the {p.kind} owns it.")]
    turns = rng.sample(ask, min(len(ask), rng.randint(1, 5)))
    return render(turns, expand(rng, "[You know this village.|This is our village.|Answer questions about the village.] ") + " ".join(facts))


def repeat_chat(rng: Random) -> str:
    pool = [*ANIMALS, *PEOPLE, *OBJECTS, *WORLD["female"], *WORLD["male"], *WORLD["colors"]]
    words = rng.sample(pool, rng.randint(2, 8))
    ask = expand(rng, "[Repeat these words|Say these words|Please repeat|Write these words again]: ")
    if rng.random() < 0.4:
        hero, obj = rng.choice([*ANIMALS, *PEOPLE]), rng.choice(list(OBJECTS))
        while held_out(hero, obj):
            hero, obj = rng.choice([*ANIMALS, *PEOPLE]), rng.choice(list(OBJECTS))
        story = Story(rng, hero=hero, obj=obj, length="short")
        line = story.text.split(". ")[0].split("\n")[0].rstrip(".") + "."
        return render([(expand(rng, "[Repeat this sentence|Say this again]: ") + line, line)], system_prompt(rng) if rng.random() < 0.3 else None)
    return render([(ask + ", ".join(words) + ".", ", ".join(words) + ".")])


def fact_chat(rng: Random) -> str:
    turns = [_fact(rng) for _ in range(rng.randint(1, 4))]
    return render(turns, system_prompt(rng) if rng.random() < 0.6 else None)


def _fact(rng: Random) -> tuple[str, str]:
    animal, obj, place = rng.choice(list(ANIMALS)), rng.choice(list(OBJECTS)), rng.choice(list(PLACES))
    a, info = with_article(animal), ANIMALS[animal]
    kind = rng.randrange(12)
    if kind == 0:
        return f"Where does {a} live?", f"{a.capitalize()} lives in {info['home']}." if not info["home"].startswith("the edge") else f"{a.capitalize()} lives at {info['home']}."
    if kind == 1:
        return f"What does {a} eat?", f"{a.capitalize()} eats {info['eats']}."
    if kind == 2:
        return f"What is a baby {animal} called?", f"A baby {animal} is called {with_article(info['baby'])}."
    if kind == 3:
        word, other = rng.sample(rng.choice(WORLD["opposites"]), 2)
        return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."
    if kind == 4:
        x, y = rng.randint(0, 10), rng.randint(0, 10)
        return f"What is {x} plus {y}?", f"{x} plus {y} is {x + y}."
    if kind == 5:
        x, y = sorted((rng.randint(0, 20), rng.randint(0, 20)), reverse=True)
        return f"What is {x} minus {y}?", f"{x} minus {y} is {x - y}."
    if kind == 6:
        names = WORLD["days"] if rng.random() < 0.5 else WORLD["months"]
        i = rng.randrange(len(names))
        return f"What comes after {names[i]}?", f"After {names[i]} comes {names[(i + 1) % len(names)]}."
    if kind == 7:
        what, pool = rng.choice((("animals", list(ANIMALS)), ("colors", WORLD["colors"]), ("things to eat", WORLD["foods"]), ("names", WORLD["female"])))
        n = rng.randint(2, 5)
        return f"Name {WORLD['numbers'][n]} {what}.", ", ".join(rng.sample(pool, n)).capitalize() + "."
    if kind == 8:
        return f"What can you do with {with_article(obj)}?", f"You can {OBJECTS[obj]['use']}."
    if kind == 9:
        seen = rng.sample(PLACES[place]["sights"], 2)
        return f"What can you see {PLACES[place]['phrase']}?", f"You can see {seen[0]} and {seen[1]}."
    if kind == 10:
        other = rng.choice([x for x in ANIMALS if ANIMALS[x]["size"] != info["size"]])
        big = animal if info["size"] > ANIMALS[other]["size"] else other
        return f"Which is bigger, {a} or {with_article(other)}?", f"{with_article(big).capitalize()} is bigger."
    return (expand(rng, "[Hello!|Hi!|Good morning!|Hello, how are you?|Who are you?|Thank you!]"),
            expand(rng, "[Hello! What would you like to hear?|Hello! I am Tiny, and I like stories.|I am well, thank you. Shall I tell you a story?]"))


def poem_chat(rng: Random) -> str:
    """Four lines that rhyme by the last word of a fixed pair."""
    hero, obj = rng.choice(list(ANIMALS)), rng.choice(list(OBJECTS))
    while held_out(hero, obj):
        hero, obj = rng.choice(list(ANIMALS)), rng.choice(list(OBJECTS))
    info = OBJECTS[obj]
    rhyme = rng.choice((("night", "light"), ("day", "play"), ("sea", "me"), ("tree", "free"), ("hill", "still"), ("rain", "again")))
    first = expand(rng, f"[A {{adj}} {hero}|The {{adj}} {hero}|One {{adj}} {hero}] [sat and watched|went out to see|was dreaming of|sang to] the {rhyme[0]},")
    lines = [first.replace("{adj}", rng.choice(ANIMALS[hero]["adjectives"])).replace("A o", "An o"),
             expand(rng, f"[and|it] {skewed(rng, ANIMALS[hero]['moves'])} [along|about|around] [so gently, so|and was] {'bright' if rhyme[1] == 'light' else rhyme[1]}."),
             expand(rng, f"[The|Its] {rng.choice(info['adjectives'])} {obj} {skewed(rng, info['features'])},"),
             expand(rng, f"[and nobody|and no one|and everybody] [knew|said|asked] [why|how|when].")]
    ask = expand(rng, f"[Write|Tell me|Make] a [poem|short poem|rhyme] about {with_article(hero)} and {with_article(obj)}.")
    return render([(ask, "\n".join(lines))], system_prompt(rng) if rng.random() < 0.4 else None)


def document(rng: Random, copying: float = 0.1) -> str:
    """One training document. `copying` is the share of repeat and look-up documents: high at first, a tenth later."""
    kind = rng.random()
    if kind < copying:
        return lookup_chat(rng) if rng.random() < 0.6 else repeat_chat(rng)
    kind = (kind - copying) / (1 - copying)
    if kind < 0.40:
        story = Story(rng)
        while held_out(story.hero.kind, story.obj):
            story = Story(rng)
        return story.text
    if kind < 0.90:
        return story_chat(rng)
    return fact_chat(rng) if kind < 0.97 else poem_chat(rng)
