"""The judge of JSON and tools: answers sampled freely, with no grammar to hold them, against what the world says."""

import json
import re
from collections.abc import Callable
from typing import Any

from training.dice import Dice
from training.render import Message, prompt
from training.shapes import JsonCase, json_case
from training.tools import ToolCase, tool_case

Answer = Callable[[list[str], int], list[str]]  # prompts, most new tokens -> texts, stopped at their ends
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def fits(value: Any, schema: Message) -> bool:
    """Does it validate? For the keywords that shapes.py writes; a test compares it with the jsonschema package."""
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, bool)):
        return False
    if value not in schema.get("enum", [value]):
        return False
    if kind == "array":
        return all(fits(item, schema["items"]) for item in value)
    if kind != "object":
        return True
    known = schema.get("properties", {})
    if set(schema.get("required", ())) - value.keys():
        return False
    if schema.get("additionalProperties") is False and value.keys() - known.keys():
        return False
    return all(fits(item, known[key]) for key, item in value.items() if key in known)


def judged_json(case: JsonCase, text: str) -> tuple[bool, bool]:
    """Does the text validate, and is it right: just what the world says, or for an invention anything that validates?"""
    try:
        value = json.loads(text)
    except ValueError:
        return False, False
    valid = fits(value, case.schema)
    return valid, valid and (case.free or value == case.answer)


def calls_in(text: str) -> list[Message] | None:
    """The calls of an answer, in order; None when one of them is no JSON object with a name and arguments."""
    calls = []
    for inside in re.findall(r"<tool_call>(.*?)(?:</tool_call>|$)", text, re.DOTALL):
        try:
            call = json.loads(inside)
            calls.append({"name": call["name"], "arguments": dict(call["arguments"])})
        except (ValueError, TypeError, KeyError):
            return None
    return calls


def judged_calls(case: ToolCase, text: str) -> dict[str, bool]:
    """parse: every call is one, and there are some. name, right: the tools wanted, and with the arguments wanted."""
    calls = calls_in(text)
    wanted = [call["function"] for call in case.wanted]
    names = [call["name"] for call in calls or []]
    return dict(parse=bool(calls), name=bool(calls) and names == [call["name"] for call in wanted],
                right=bool(calls) and calls == [{"name": call["name"], "arguments": call["arguments"]} for call in wanted])


def shapes(answer: Answer, count: int, longest: int, seed: int = 40_000) -> dict[str, float]:
    """Shares with names that no training text has, and, under keys that end in `_known`, with names as training texts have.

    The unseen keys are English words ("belongings", "inhabitants") or made up ("kuvofe"). For answer, count and longest see
    `shapes_with`.
    """
    known = shapes_with(answer, count, longest, unseen=False, seed=seed + 1)
    return shapes_with(answer, count, longest, unseen=True, seed=seed) | {f"{key}_known": known[key] for key in known}


def shapes_with(answer: Answer, count: int, longest: int, *, unseen: bool, seed: int) -> dict[str, float]:
    """Shares of `count` questions of each kind, new ones in either case; unseen: whose names are the judge's own.

    answer: samples, with special tokens left out. longest: a limit of the tokens of an answer, beside this function's own.
    """
    rng = Dice(seed)
    asked = [json_case(rng, unseen) for _ in range(count)]
    texts = answer([prompt(case.messages[:-1]) for case in asked], min(160, longest))
    valid, right = zip(*(judged_json(case, text) for case, text in zip(asked, texts)))

    wanting = [tool_case(rng, unseen, need="one" if i % 4 else "two") for i in range(count)]
    texts = answer([prompt(case.messages[:case.asked], case.tools) for case in wanting], min(160, longest))
    calls = [judged_calls(case, text) for case, text in zip(wanting, texts)]

    plain = [tool_case(rng, unseen, need="none") for _ in range(max(1, count // 2))]
    texts = answer([prompt(case.messages[:case.asked], case.tools) for case in plain], min(40, longest))

    used = [case for case in wanting if len(case.messages) > case.asked + 2]
    answers = [next(m for m in case.messages[case.asked + 1:] if m["role"] == "assistant") for case in used]
    prompts = [prompt(case.messages[:case.messages.index(said)], case.tools) for case, said in zip(used, answers)]
    told = answer(prompts, min(80, longest))
    return dict(json_valid=_share(valid), json_right=_share(right), tool_calls_parse=_share(c["parse"] for c in calls),
                tool_names_right=_share(c["name"] for c in calls), tool_calls_right=_share(c["right"] for c in calls),
                tools_left_alone=_share("<tool_call>" not in text for text in texts),
                responses_used=_share(text.strip() == said["content"] for text, said in zip(told, answers)))


def _share(flags: Any) -> float:
    flags = list(flags)
    return round(sum(flags) / max(1, len(flags)), 4)
