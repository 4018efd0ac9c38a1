"""What training teaches of JSON and tools: the generator's answers are right about its world, and the judge can tell."""

import json
import re

import jsonschema
import pytest
from tokenizers import Tokenizer

from nanovllm.config import OFFLINE_MODEL
from nanovllm.serving.chat_template import render as by_template
from training.data import MARKS, SPECIAL, train_tokenizer
from training.dice import Dice
from training.grammar import plural
from training.judge_shapes import calls_in, fits, judged_calls, judged_json, shapes
from training.key_names import WORDS, another_name
from training.render import CHAT_TEMPLATE, assistant, conversation, prompt, render, user
from training.shapes import COUNTED, PERSON, STORY, json_case, json_chat
from training.tools import FAMILIES, exchange, make_tool, reserved, tool_case, tool_chat

FACT = re.compile(r"(\w+) the ([\w ]+?) (?:is (\d+) years old, )?(?:lives in|has|built|sleeps in) the (\w+) house"
                  r"(?: near [\w' ]+)?, (?:owns|keeps|carries) (an? [\w ]+?) and likes ([\w ]+)\.")


def _judges_names():
    own = {names[-1] for field in (PERSON, STORY, COUNTED) for names, *_ in field.values()}
    return own | {argument.names[-1] for family in FAMILIES.values() for argument in family.arguments.values()}


@pytest.mark.parametrize("unseen", [False, True], ids=("training", "judge"))
def test_answers_in_json_validate_and_are_one_line(unseen):
    rng = Dice(3)
    for _ in range(400):
        case = json_case(rng, unseen)
        text = case.messages[-1]["content"]
        assert json.loads(text) == case.answer and "\n" not in text
        jsonschema.Draft202012Validator.check_schema(case.schema)
        jsonschema.validate(case.answer, case.schema)
        assert judged_json(case, text) == (True, True)


def test_what_json_says_of_a_village_stands_in_its_facts():
    """By reading the facts again, from the prompt alone."""
    rng, checked = Dice(4), 0
    while checked < 300:
        case = json_case(rng)
        rows = {found[0]: found for found in FACT.findall(case.messages[0]["content"])}
        values = case.answer if isinstance(case.answer, list) else [case.answer]
        values = next((v for v in values[0].values() if isinstance(v, list)), values) if values else []
        for value in values:
            keys = {name: key for name, (known, *_) in PERSON.items() for key in value if key in known}
            if not rows or value.get(keys.get("name")) not in rows:
                continue
            _, kind, age, house, thing, food = rows[value[keys["name"]]]
            said = {"kind": kind, "house": house, "owns": thing.split(" ", 1)[1], "food": food, "age": int(age or 0)}
            for field, key in keys.items():
                if field != "name":
                    assert value[key] == said[field], (value, rows)
            checked += 1


def test_the_judge_validates_as_jsonschema_does():
    rng, seen = Dice(5), set()
    cases = [json_case(rng) for _ in range(150)]
    values = [case.answer for case in cases] + [None, 3, True, "x", [], {}, [{}], [1]]
    for case in cases:
        for value in rng.sample(values, 20) + [case.answer]:
            expected = jsonschema.Draft202012Validator(case.schema).is_valid(value)
            assert fits(value, case.schema) is expected, (value, case.schema)
            seen.add(expected)
            if isinstance(value, dict) and value:
                key = next(iter(value))
                for other in ({**value, key: [value[key]]}, {**value, "more": 1}, {k: v for k, v in value.items() if k != key}):
                    assert fits(other, case.schema) is jsonschema.Draft202012Validator(case.schema).is_valid(other)
    assert seen == {True, False}


@pytest.mark.parametrize("unseen", [False, True], ids=("training", "judge"))
def test_calls_name_a_tool_that_is_there_and_fit_its_parameters(unseen):
    rng, needs = Dice(6), {}
    for _ in range(400):
        case = tool_case(rng, unseen)
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case.tools}
        assert len(schemas) == len(case.tools)
        for message in case.messages:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                jsonschema.validate(function["arguments"], schemas[function["name"]] | {"additionalProperties": False})
        needs[len(case.wanted)] = needs.get(len(case.wanted), 0) + 1
        asked = case.messages[case.asked - 1]["content"]
        for call in case.wanted:  # whatever is sent stands in the question
            assert all(str(value) in asked for value in call["function"]["arguments"].values())
        text = conversation(case.messages, case.tools)
        said = text[len(prompt(case.messages[:case.asked], case.tools)):].split("<|im_end|>")[0]
        assert judged_calls(case, said) == dict.fromkeys(("parse", "name", "right"), bool(case.wanted))
    assert set(needs) == {0, 1, 2} and min(needs.values()) > 40


def test_answers_say_what_the_tools_responded():
    rng = Dice(7)
    for name, family in FAMILIES.items():
        for _ in range(20):
            asked, call, response, answer = exchange(rng, [make_tool(rng, family)], thoughts=False)
            for value in json.loads(response["content"]).values():
                assert value is True or str(value) in answer["content"], name
            for value in call["tool_calls"][0]["function"]["arguments"].values():
                assert str(value) in asked["content"], name
    values = {"first": 19, "second": 23}
    assert FAMILIES["sum"].respond(rng, values) == {"result": 42}


def test_names_of_tools_and_arguments_are_kept_for_the_judge():
    rng = Dice(8)
    made = {unseen: [make_tool(rng, family, unseen) for family in FAMILIES.values() for _ in range(40)]
            for unseen in (False, True)}
    for unseen, tools in made.items():
        for tool in tools:
            pairs = [(verb, noun) for verb in tool.family.verbs for noun in tool.family.nouns]
            assert tool.name not in {f"{verb}_{noun}" for verb, noun in pairs if reserved(verb, noun) is not unseen}
            for role, name in tool.names.items():
                names = tool.family.arguments[role].names
                assert name not in (names[:-1] if unseen else names[-1:])
    assert not {tool.name for tool in made[False]} & {tool.name for tool in made[True]}


def test_keys_are_words_of_several_tokens_too_and_never_the_judges():
    rng, own = Dice(12), _judges_names()
    assert len(WORDS) == len(set(WORDS)) > 500 and not set(WORDS) & own
    names = [another_name(rng) for _ in range(2000)]
    assert not set(names) & own and len(set(names)) > 1200
    english = {word for name in names for word in re.findall(r"[A-Z]?[a-z]+", name) if word.lower() in WORDS}
    assert len(english) > 400
    backend = Tokenizer.from_file(str(OFFLINE_MODEL / "tokenizer.json"))
    pieces = [len(backend.encode(word).ids) for word in WORDS]
    assert sum(count >= 2 for count in pieces) > 0.9 * len(pieces)
    assert all(another_name(rng, taken=(name,)) != name for name in names[:300])


def test_documents_have_such_keys_and_the_judge_keeps_its_own():
    rng = Dice(13)
    for unseen, least in ((False, 0.2), (True, 0.0)):
        schemas = [case.schema for case in (json_case(rng, unseen) for _ in range(300)) if "properties" in case.schema]
        keys = [key for schema in schemas for key in schema["properties"]]
        keys += [key for _ in range(300) for tool in tool_case(rng, unseen).tools
                 for key in tool["function"]["parameters"]["properties"]]
        share = sum(any(word.lower() in WORDS for word in re.findall(r"[A-Z]?[a-z]+", key)) for key in keys) / len(keys)
        assert least <= share < (0.35 if least else 0.15), share


def test_text_is_rendered_by_the_template_that_is_exported():
    rng = Dice(9)
    for _ in range(60):
        case = tool_case(rng, thoughts=rng.flip(0.3))
        assert conversation(case.messages, case.tools) == by_template(CHAT_TEMPLATE, case.messages, tools=case.tools,
                                                                      add_generation_prompt=False)
    turns = [("a", "b"), ("c", "d")]
    said = (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert render(turns, "s") == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said)


def test_a_thought_goes_on_from_the_prompt_that_asks_for_it():
    messages = [user("Why?"), assistant("So.", "I think.")]
    assert conversation(messages) == prompt(messages[:1], thinking=True) + "I think.\n</think>\n\nSo.<|im_end|>\n"
    messages[1].pop("reasoning_content")
    assert conversation(messages, thinking=False) == prompt(messages[:1], thinking=False) + "So.<|im_end|>\n"


def test_thoughts_are_closed_and_short():
    rng, thoughts = Dice(10), []
    for _ in range(600):
        text = json_chat(rng) if rng.flip(0.5) else tool_chat(rng)
        assert text.count("<think>") == text.count("</think>")
        thoughts += re.findall(r"<think>\n(.*?)\n</think>\n\n", text, re.DOTALL)
    assert len(thoughts) > 40 and max(map(len, thoughts)) < 400 and all(thoughts)


def test_marks_are_tokens_of_their_own_that_stay_in_the_text():
    tokenizer = train_tokenizer(0, 512, 40)
    assert tokenizer.get_vocab_size() == 512
    for mark in MARKS:
        assert len(tokenizer.encode(mark).ids) == 1 and tokenizer.decode(tokenizer.encode(f"a{mark}b").ids) == f"a{mark}b"
    for mark in SPECIAL:
        assert tokenizer.decode(tokenizer.encode(f"a{mark}b").ids) == "ab"


@pytest.mark.parametrize(("text", "calls"), [
    ("Hello.", []),
    ('<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>', [{"name": "a", "arguments": {}}]),
    ('<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n<tool_call>\n{"name": "b", "arguments": {}}',
     [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]),
    ('<tool_call>\n{"name": "a"}\n</tool_call>', None), ("<tool_call>\n[1]\n</tool_call>", None),
    ('<tool_call>\n{"name": "a", "arguments": 3}\n</tool_call>', None), ('<tool_call>{"name": "a", "argu', None)])
def test_calls_are_read_from_an_answer(text, calls):
    assert calls_in(text) == calls


def test_the_judge_of_shapes_can_be_satisfied_and_can_not():
    """A model that answers as the generator does gets ones, one that says nothing of use gets noughts."""
    def perfect(prompts, longest):
        return [known[prompt_text] for prompt_text in prompts]

    count, known = 12, {}
    for rng, unseen in ((Dice(40_000), True), (Dice(40_001), False)):
        for case in [json_case(rng, unseen) for _ in range(count)]:
            known[prompt(case.messages[:-1])] = case.messages[-1]["content"]
        for case in [tool_case(rng, unseen, need="one" if i % 4 else "two") for i in range(count)]:
            for i, message in enumerate(case.messages):
                if message["role"] == "assistant":
                    before = prompt(case.messages[:i], case.tools)
                    known[before] = conversation(case.messages[:i + 1], case.tools)[len(before):].removesuffix("<|im_end|>\n")
        for case in [tool_case(rng, unseen, need="none") for _ in range(count // 2)]:
            known[prompt(case.messages[:case.asked], case.tools)] = case.messages[case.asked]["content"]
    assert set(shapes(perfect, count, 600).values()) == {1.0}
    figures = shapes(lambda prompts, longest: ["<tool_call>Once upon a time"] * len(prompts), count, 600)
    assert set(figures.values()) == {0.0}


def test_the_judge_of_shapes_tells_known_names_from_unseen_ones():
    """A model that copies only the names of training texts: right wherever every name is one, wrong elsewhere."""
    own = _judges_names()

    def copies_known(prompts, longest):
        return ["{}" if own & set(re.findall(r"\w+", text)) else known.get(text, "") for text in prompts]

    rng, count = Dice(40_001), 24
    known = {prompt(case.messages[:-1]): case.messages[-1]["content"] for case in [json_case(rng) for _ in range(count)]}
    figures = shapes(copies_known, count, 600)
    assert figures["json_valid"] < 0.2 < 0.8 < figures["json_valid_known"], figures


@pytest.mark.parametrize(("one", "many"), [
    ("milk pail", "milk pails"), ("basket of eggs", "baskets of eggs"), ("goose", "geese"), ("box", "boxes"),
    ("ladder on wheels", "ladders on wheels"), ("water rat", "water rats"), ("canary", "canaries"), ("donkey", "donkeys"),
    ("message in a bottle", "messages in a bottle"), ("policeman", "policemen"), ("torch", "torches")])
def test_plurals(one, many):
    assert plural(one) == many
