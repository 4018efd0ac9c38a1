"""The shape that an answer must have, in the terms of vLLM's `StructuredOutputsParams`."""

import json
import re
from dataclasses import dataclass, field, fields
from decimal import Decimal
from math import lcm
from typing import Any, Self

from nanovllm.errors import InvalidRequest
from nanovllm.utils.checks import check_keywords, check_request
from nanovllm.utils.numbers import is_number, shown

MAX_LENGTH = 65536      # characters of a schema, an expression, a grammar or all choices together
MAX_PROPERTIES = 2000   # of all objects of a schema together: what it takes to compile them grows with their square
MAX_OPTIONAL = 400      # properties of one object that may be left out: each may come next, and all are kept in mind
MAX_DEPTH = 64          # of a schema's lists and objects
MAX_DIVISORS = 20_000   # of a schema's multipleOf: an automaton that divides has a state for each remainder
SHAPES = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """What an answer must look like. Exactly one of the first five fields is set.

    A token is drawn only if the answer can still be completed with it, and the request ends when nothing can follow. So a
    finished answer has the shape; one that `max_tokens` or a stop string cuts off is the beginning of one that has it.

    json: a JSON schema, as a dict or as JSON text. An object's properties come in the order in which the schema names them.
    regex: a regular expression in Rust's syntax, which has no look-around and no back-references; the whole answer matches it.
    choice: texts, one of which is the answer.
    grammar: a context-free grammar in llguidance's variety of Lark, whose first rule is `start`.
    json_object: True: any JSON object.
    disable_any_whitespace: allow none between the tokens of JSON. Otherwise there may be one space, or a newline and at most
        16 spaces or tabs, so that no answer consists of blanks.

    Raises InvalidRequest, naming the field, the value, the limit and the remedy; for an unknown field too. Whether a grammar
    can be compiled is known when a request is made of it.
    """

    json: str | dict[str, Any] | None = field(default=None, hash=False)
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False

    def __new__(cls, *args: Any, **given: Any) -> Self:
        check_keywords("StructuredOutputsParams", given, cls.__dataclass_fields__, error=InvalidRequest)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        if self.json_object is False:  # asks for nothing
            object.__setattr__(self, "json_object", None)
        given = [name for name in SHAPES if getattr(self, name) is not None]
        check_request(len(given) == 1, "structured_outputs", {name: getattr(self, name) for name in given},
                      f"exactly one of {', '.join(SHAPES)}", "set one of them, and leave the others out")
        check_request(isinstance(self.disable_any_whitespace, bool), "structured_outputs.disable_any_whitespace",
                      self.disable_any_whitespace, "True or False", "pass a bool")
        getattr(self, f"_check_{given[0]}")()

    def __repr__(self) -> str:
        given = ", ".join(f"{f.name}={shown(getattr(self, f.name))}" for f in fields(self) if getattr(self, f.name))
        return f"StructuredOutputsParams({given})"

    @property
    def shape(self) -> str:
        """Which of the fields is set."""
        return next(name for name in SHAPES if getattr(self, name) is not None)

    @property
    def schema(self) -> str | None:
        """The JSON schema as JSON text, of `json` and of `json_object`; None for other shapes."""
        if self.json_object:
            return '{"type": "object"}'
        return self.json if self.json is None or isinstance(self.json, str) else json.dumps(self.json)

    def _check_json(self) -> None:
        name, schema = "structured_outputs.json", self.json
        check_request(isinstance(schema, (str, dict)), name, schema, "a JSON schema, as a dict or as JSON text",
                      "pass a dict")
        if isinstance(schema, str):
            _check_length(name, schema)
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{name}={shown(self.json)}: must be JSON ({error}); pass the schema as a dict.") from None
            check_request(isinstance(schema, dict), name, self.json, "a JSON object", "pass the schema as a dict")
        else:
            _check_serializable(name, schema)
        _check_size(name, schema)
        _check_characters(name, json.dumps(schema, ensure_ascii=False))

    def _check_regex(self) -> None:
        _check_text("structured_outputs.regex", self.regex, "a regular expression")

    def _check_grammar(self) -> None:
        name, text = "structured_outputs.grammar", self.grammar
        _check_text(name, text, "a grammar in Lark's syntax")
        assert text is not None
        for found in re.finditer(r"%json\s*", text):  # a schema in the middle of the grammar
            try:
                schema, _ = json.JSONDecoder().raw_decode(text, found.end())
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{name}={shown(text)}: must have a JSON schema behind each %json ({error}); "
                                     "correct it.") from None
            _check_size(name, schema)
            _check_characters(name, json.dumps(schema, ensure_ascii=False))

    def _check_choice(self) -> None:
        name, choice = "structured_outputs.choice", self.choice
        check_request(isinstance(choice, (list, tuple)) and len(choice) > 0, name, choice, "a list of at least one text",
                      "pass a list of texts")
        assert choice is not None
        for text in choice:
            _check_text(name, text, "texts of at least one character")
        _check_length(name, "".join(choice))
        object.__setattr__(self, "choice", tuple(choice))

    def _check_json_object(self) -> None:
        check_request(self.json_object is True, "structured_outputs.json_object", self.json_object, "True or left out",
                      "pass True")


def _check_text(name: str, text: object, what: str) -> None:
    check_request(isinstance(text, str) and text != "", name, text, what, "pass a text that is not empty")
    _check_length(name, str(text))
    _check_characters(name, str(text))


def _check_characters(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name}={shown(text)}: must be characters, and holds half of a surrogate pair; decode the text "
                             "again with errors='replace'.") from None


def _check_length(name: str, text: str) -> None:
    check_request(len(text) <= MAX_LENGTH, f"{name} length", len(text), f"at most {MAX_LENGTH} characters",
                  "ask for a smaller shape")


def _check_serializable(name: str, schema: object) -> None:
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name}={shown(schema)}: must be what JSON can say ({error}); leave out what it cannot."
                             ) from None
    _check_length(name, text)


def _check_size(name: str, schema: object) -> None:
    """Refuse what would take seconds to compile. Looks at every value once, without recursion."""
    num_properties, depth, level = 0, 0, [schema]
    divisors: list[int] = []
    while level:
        depth += 1
        check_request(depth <= MAX_DEPTH, f"{name} depth", depth, f"at most {MAX_DEPTH} levels", "use $defs and $ref")
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                properties = value.get("properties")
                if isinstance(properties, dict):
                    num_properties += len(properties)
                    _check_optional(name, properties, value.get("required"))
                divisors += _divisor(value.get("multipleOf"))
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = below
    check_request(num_properties <= MAX_PROPERTIES, f"{name} properties", num_properties, f"at most {MAX_PROPERTIES} in all",
                  "ask for a smaller shape")
    most = max(sum(divisors), lcm(*divisors))
    check_request(most <= MAX_DIVISORS, f"{name} multipleOf", most, f"at most {MAX_DIVISORS}, the sum and the least common "
                  "multiple of all in a schema, without their decimal points", "use smaller ones, or check it afterwards")


def _check_optional(name: str, properties: dict[str, object], required: object) -> None:
    named = {text for text in required if isinstance(text, str)} if isinstance(required, list) else set()
    optional = len(properties.keys() - named)
    check_request(optional <= MAX_OPTIONAL, f"{name} optional", optional, f"at most {MAX_OPTIONAL} properties of one object "
                  "that are not required", "name more of them in required")


def _divisor(number: object) -> list[int]:
    """A number's digits as a whole number: 150 of 150, and 15 of 0.15. None of what is no number: llguidance says so."""
    if not is_number(number) or number == 0:
        return []
    if abs(number) > MAX_DIVISORS:
        return [MAX_DIVISORS + 1]
    _, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    return [int("".join(map(str, digits))) * 10 ** max(0, int(exponent))]
