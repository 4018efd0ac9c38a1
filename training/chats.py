"""Conversations in Qwen's chat format: requests for stories, questions about them, look-ups, facts, sums, lists, poems.

Answers in JSON are made in shapes.py, tools in tools.py.

Every answer is computed from the same world that wrote the question, so it is right by construction.
"""

from dataclasses import dataclass

from training.dice import Dice
from training.facts import fact
from training.grammar import ANIMALS, OBJECTS, PEOPLE, PLACES, WORLD, expand, with_article
from training.held_out import held_out, seen_story, unheard
from training.render import assistant, conversation, render, user
from training.render import system as system_message
from training.shapes import json_chat
from training.stories import Story
from training.tools import tool_chat
from training.village import Village

SHORT_SYSTEM = ("You are a helpful assistant.", "You are a friendly storyteller.", "You tell short stories to children.",
                "You are Tiny, a small language model.", "You are a patient teacher.", "You write simple English.",
                "You are a kind storyteller. You tell short stories for children in simple words.",
                "You are a kind storyteller. You tell short stories for children in simple words. Every story has a hero, "
                "a small trouble and a happy end.")
ROLE = ("You are {a} [kind|friendly|patient|cheerful|wise|gentle|careful|curious|old|young|polite|clever|calm|merry|humble] "
        "[storyteller|teacher|helper|writer|librarian|friend|robot|guide|reader|neighbor|uncle|aunt|poet|gardener|sailor]"
        "[| from <town>| who likes <topic>| who once lived in <town>| and you know a lot about <topic>].")
# Rules say what a good answer does anyway, or things about the speaker: none asks for what the answers would not do.
RULES = ("You are a kind storyteller.", "You tell short stories for children in simple words.",
         "[Use|Write] [short|simple|clear] sentences.", "Every story has a hero, a small trouble and a happy end.",
         "Never be [rude|unkind|impatient].", "Be kind to [everyone|the children|strangers|animals].",
         "When someone asks for a story, use what they ask for.", "When someone asks a question, answer it in one sentence.",
         "Do not tell sad stories [at night|in winter|before supper|on Mondays].",
         "You live in [a notebook|<town>|a <color> house].", "You like words that are easy to read.",
         "You know many animals and where they live.", "You can add small numbers.", "Name the hero early in the story.",
         "Keep the hero the same until the end.", "If you do not know something, say so.", "You never use hard words.",
         "The children who listen are <number> years old.", "A story should be fun to read aloud.", "You answer quickly.",
         "Friends help each other in your stories.", "You never tell anyone a secret.", "You like <topic> and <topic>.",
         "You speak like a <person> <someone>.", "You never get tired of [questions|<topic>].",
         "A good story has a beginning and an end.", "You are polite and you say thank you.",
         "You remember what was said before.", "You keep your answers short.",
         "You tell stories about animals, people and things.", "You love <topic>.", "What happens in a story has a reason.",
         "You do not make lists of rules.", "Your best friend is a <person> <someone> from <town>.",
         "You own a <color> [notebook|pencil|chair].", "You once met a <person> <someone> in <town>.",
         "You were made in <town>.",
         "You work as a <someone>.", "You do not like <topic>.", "The reader is a <person> <someone> named <first>.",
         "The reader is <calm>.", "The children come from <town> and <town>.", "Today you are <calm>.",
         "The children are called <first>, <first> and <first>.", "You read your stories aloud in <town>.",
         "Every evening <first> and <first> listen to you.", "Stay with what the story is about.",
         "<first> is <number> years old.",
         "Your name is <first>, but everybody calls you Tiny.")
GREETINGS = ("", "", "", "", "", "Hello! ", "Hi! ", "Good morning. ", "Hello, Tiny. ",
             "It is [late|early|raining|snowing|quiet here]. ", "I am <calm>. ", "I have <number> minutes. ",
             "I am a <person> <someone>. ", "My name is <first>. ", "I live in <town>. ")
REASONS = ("", "", "", "", "", " It is for <relative>.", " Thank you!", " I like <topic>.", " My <someone> likes <topic>.",
           " I will read it to <number> children.",
           " I want to hear it [tonight|tomorrow|now|before I sleep|at <hour> o'clock].", " We are all <calm>.",
           " Take your time.")
SHAPED = 0.2  # with their long prompts, a fifth of all tokens
SIGN_OFFS = ("Stay curious.", "Sleep well.", "The end.", "See you soon.", "Be kind.", "Keep reading.")


@dataclass
class Request:
    """A story request and what an answer must contain. The judge uses the same class on held-out combinations."""

    text: str
    wanted: list[str]   # words the story must name
    story: dict         # arguments for Story
    hero: str | None = None
    hero_name: str | None = None


def story_request(rng: Dice, unseen: bool = False) -> Request:
    """A request drawn from many wordings; `unseen` draws only the pairs of hero and object or place that training holds out."""
    fitting = [[]]
    while not all(fitting):  # not every hero has a place that is held out
        hero = rng.choice(list(ANIMALS) if rng.flip(0.75) else list(PEOPLE))
        fitting = [[x for x in things if held_out(hero, x) == unseen] for things in (OBJECTS, PLACES)]
    obj, place = map(rng.choice, fitting)
    friend = rng.choice([a for a in ANIMALS if a != hero])
    name = rng.choice(WORLD["female"] + WORLD["male"])
    if PEOPLE.get(hero, {}).get("gender", "b") != "b":
        name = rng.choice(WORLD["female" if PEOPLE[hero]["gender"] == "f" else "male"])
    length = rng.weighted((None, "short", "long"), (0.7, 0.2, 0.1))
    story = expand(rng, {None: "[story|little story|nice story|tale]", "short": "short story", "long": "long story"}[length])
    ask = expand(rng, "[Tell me|Please tell me|Can you tell me|Write|Please write|Make up|I would like|Give me|Tell us|"
                      "I want to hear|Read me|Think of|Could you write|Let me hear|We would like|I need]")
    end = "?" if ask.startswith(("Can", "Could")) else "."
    named = f"{with_article(hero)} {rng.skewed(('named', 'called'))} {name}"
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
    _, about, wanted, given = rng.weighted(kinds, [k[0] for k in kinds])
    greeting, reason = (expand(rng, rng.choice(words)) for words in (GREETINGS, REASONS))
    return Request(f"{greeting}{ask} {with_article(story)} {about}{end}{reason}", wanted, given | dict(length=length),
                   given.get("hero"), given.get("hero_name"))


def system_prompt(rng: Dice) -> str | None:
    """None, a line, or a page of rules in random order (prefix caching needs prompts longer than a block)."""
    kind = rng.weighted(("none", "line", "role", "page"), (0.45, 0.25, 0.2, 0.1))
    if kind == "none":
        return None
    if kind == "line":
        return rng.choice(SHORT_SYSTEM)
    role = expand(rng, ROLE)
    role = role.replace("{a} ", "an " if role[12] in "aeiou" else "a ")
    few = rng.whole(0, 3) if kind == "role" else rng.whole(4, 28)
    return " ".join([role, *(expand(rng, rule) for rule in rng.some(RULES, few))])


def story_chat(rng: Dice) -> str:
    start = rng.nats
    while True:
        rng.nats = start
        request = story_request(rng)
        story = seen_story(rng, **request.story)
        if all(w in story.text for w in request.wanted):
            break
    turns = [(request.text, story.text)]
    questions = questions_about(rng, story)
    turns += rng.some(questions, rng.weighted((0, 1, 2, 3), (0.6, 0.2, 0.12, 0.08)))
    system = system_prompt(rng)
    if rng.flip(0.12):
        sign_off = rng.choice(SIGN_OFFS)
        finish = rng.skewed(("End every answer with", "Always finish with"))
        system = f"{system or 'You are a storyteller.'} {finish}: {sign_off}"
        turns = [(u, f"{a} {sign_off}") for u, a in turns]
    if len(turns) == 1 and rng.flip(0.08):  # with a plan before the story, or an empty one
        about = " and ".join(map(with_article, (story.hero.kind, story.obj)))
        thought = f"A story about {about}, {PLACES[story.place]['phrase']}."
        thinking = rng.flip(0.6)
        messages = [*system_message(system), user(turns[0][0]), assistant(turns[0][1], thought if thinking else None)]
        return conversation(messages, thinking=thinking)
    return render(turns, system)


def questions_about(rng: Dice, story: Story) -> list[tuple[str, str]]:
    hero, place = story.hero, PLACES[story.place]["phrase"]
    who = hero.short() if hero.named else f"the {hero.kind}"
    pairs = [("[Where|In what place] did the story happen?", f"It happened {place}."),
             ("Who was the [hero|main character]?", f"It was {who} the {hero.kind}." if hero.named else f"It was {who}."),
             (f"What did {who} have?", f"{hero.he.capitalize()} had {with_article(story.obj)}."),
             (f"What was the {story.obj} like?", f"The {story.obj} was {story.adjective}."),
             (f"Who did {who} meet?", f"{hero.he.capitalize()} met {story.friend.short()}"
              + (f" the {story.friend.kind}." if story.friend.named else "."))]
    if hero.named:
        pairs.append((f"What kind of [animal|person|hero] was {hero.name}?".replace("animal|person|hero", "hero"),
                      f"{hero.name} was {with_article(hero.kind)}."))
    if "season" in vars(story) and story.season in story.text:  # drawn, and said
        pairs.append(("[What season was it|When did it happen]?", f"It was {story.season}."))
    return [(expand(rng, q), a) for q, a in pairs]


def lookup_chat(rng: Dice, thoughts: float = 0.1) -> str:
    """Facts of a made-up village in the system prompt, asked back: the answer is nowhere but in the context.

    thoughts: how often the fact is recalled in a thought before the answer.
    """
    village = Village(rng)
    asked = village.questions()
    turns = rng.some(asked, min(len(asked), rng.whole(1, 3)))
    if not rng.flip(thoughts):
        return render([(question, answer) for question, answer, _ in turns], village.text)
    question, answer, who = turns[0]  # with the fact recalled before the answer
    thought = f"{who.name} the {who.kind} has the {who.house} house, {with_article(who.owns)} and likes {who.food}."
    return conversation([*system_message(village.text), user(question), assistant(answer, thought)])


def repeat_chat(rng: Dice) -> str:
    pool = [*ANIMALS, *PEOPLE, *OBJECTS, *WORLD["female"], *WORLD["male"], *WORLD["colors"]]
    before = rng.nats
    ask = expand(rng, "[Repeat these words|Say these words|Please repeat|Write these words again]: ")
    if rng.flip(0.4):
        story = seen_story(rng, length="short")
        line = story.text.split(". ")[0].split("\n")[0].rstrip(".") + "."
        rng.nats = before + 0.08 * (rng.nats - before)  # one sentence of about a dozen was kept
        ask = expand(rng, "[Repeat this sentence|Say this again]: ")
        return render([(ask + line, line)], system_prompt(rng) if rng.flip(0.3) else None)
    words = rng.some(pool, rng.whole(2, 8))
    return render([(ask + ", ".join(words) + ".", ", ".join(words) + ".")])


def fact_chat(rng: Dice) -> str:
    turns = [fact(rng) for _ in range(rng.whole(1, 4))]
    return render(turns, system_prompt(rng) if rng.flip(0.6) else None)


def poem_chat(rng: Dice) -> str:
    """Four lines that rhyme by the last word of a fixed pair."""
    hero, obj = unheard(rng)
    info = OBJECTS[obj]
    rhyme = rng.choice((("night", "light"), ("day", "play"), ("sea", "me"), ("tree", "free"), ("hill", "still"),
                        ("rain", "again")))
    first = expand(rng, f"[A {{adj}} {hero}|The {{adj}} {hero}|One {{adj}} {hero}] "
                        f"[sat and watched|went out to see|was dreaming of|sang to] the {rhyme[0]},")
    lines = [first.replace("{adj}", rng.choice((ANIMALS.get(hero) or PEOPLE[hero])["adjectives"])).replace("A o", "An o"),
             expand(rng, f"[and|it] {rng.skewed(ANIMALS.get(hero, {}).get('moves', ('walked', 'hurried', 'ran')))} "
                         f"[along|about|around] [so gently, so|and was] {'bright' if rhyme[1] == 'light' else rhyme[1]}."),
             expand(rng, f"[The|Its] {rng.choice(info['adjectives'])} {obj} {rng.skewed(info['features'])},"),
             expand(rng, "[and nobody|and no one|and everybody] [knew|said|asked] [why|how|when].")]
    ask = expand(rng, f"[Write|Tell me|Make] a [poem|short poem|rhyme] about {with_article(hero)} and {with_article(obj)}.")
    return render([(ask, "\n".join(lines))], system_prompt(rng) if rng.flip(0.4) else None)


def document(rng: Dice, copying: float = 0.1, shaped: float = SHAPED) -> str:
    """One training document.

    copying: the share of repeat and look-up documents, high at first, a tenth later. shaped: of the others, the share of
    answers in JSON and of tools.
    """
    kinds = (lookup_chat, repeat_chat, lambda rng: seen_story(rng).text, story_chat, fact_chat, poem_chat, json_chat, tool_chat)
    shares = [copying * p for p in (0.6, 0.4)]
    shares += [(1 - copying) * (1 - shaped) * p for p in (0.41, 0.51, 0.05, 0.03)] + [(1 - copying) * shaped / 2] * 2
    return rng.weighted(kinds, shares)(rng)
