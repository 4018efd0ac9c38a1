"""The kinds of field that request bodies consist of: what each takes, and what the OpenAPI document says of it.

The OpenAI API lets one field hold a text or a list of texts or more. These check by hand, so that a client reads one
sentence about its field and not a line for every branch of a union.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 4096
MAX_LISTED_TOKENS = 1024
MAX_PROMPTS = 16384

_TEXT = {"type": "string"}
_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


class Only:
    """Marks a field that is not served: it may only hold null, or one of the values that ask for nothing."""

    def __init__(self, *neutral: Any):
        self._neutral = neutral

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._validated, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self._neutral]}

    def _validated(self, value: Any) -> Any:
        # 1 == True, and one of them may ask for something where the other does not.
        if value is not None and not any(value == each and isinstance(value, bool) == isinstance(each, bool)
                                         for each in self._neutral):
            raise ValueError("this server does not offer it; leave it out")
        return value


def limits(**bounds: float) -> Any:
    """Says a number's limits in the OpenAPI document; SamplingParams holds it to them, and says more when it is beyond."""
    return Field(json_schema_extra=dict(bounds))


def is_text(value: Any) -> bool:
    """JSON can spell half a surrogate pair, which is no character."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)


def _stop_strings(value: Any) -> list[str]:
    texts: list[str] = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if isinstance(texts, list) and len(texts) > MAX_STOP_STRINGS:
        raise ValueError(f"{len(texts)} texts; at most {MAX_STOP_STRINGS} are looked for, send fewer")
    if not (isinstance(texts, list) and all(map(is_text, texts))):
        raise ValueError("must be a text or a list of texts")
    if (total := sum(map(len, texts))) > MAX_STOP_CHARACTERS:
        raise ValueError(f"{total} characters in all; at most {MAX_STOP_CHARACTERS} are looked for, send shorter ones")
    return texts


def _bad_words(value: Any) -> list[str]:
    words = _stop_strings(value)
    if isinstance(value, str) or not all(word.strip() for word in words):
        raise ValueError("must be a list of texts that are not spaces alone")
    return words


def _cache_salt(value: str | None) -> str | None:
    if value and not is_text(value):
        raise ValueError("must be a text")
    return value or None


def _prompts(value: Any) -> list[str | list[int]]:
    """Every prompt as a text or a list of token ids."""
    if is_text(value) or _is_token_ids(value):
        return [value]
    if isinstance(value, list) and len(value) > MAX_PROMPTS:
        raise ValueError(f"{len(value)} prompts; at most {MAX_PROMPTS} are read, send fewer")
    if isinstance(value, list) and value and (all(map(is_text, value)) or all(map(_is_token_ids, value))):
        prompts: list[str | list[int]] = value
        return prompts
    raise ValueError("must be a text, a list of texts, a list of token ids or a list of such lists, and none of them empty")


def _content(value: Any) -> str:
    """A message's text, of one piece or of several parts."""
    if isinstance(value, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and is_text(part.get("text")) for part in value):
            raise ValueError("parts must be of type 'text'; this server reads nothing else")
        return "".join(part["text"] for part in value)
    if not is_text(value):
        raise ValueError("must be a text or a list of parts of type 'text'")
    content: str = value
    return content


def _not_too_many(value: Any) -> Any:
    if isinstance(value, list | dict) and len(value) > MAX_LISTED_TOKENS:
        raise ValueError(f"{len(value)} entries; at most {MAX_LISTED_TOKENS} are taken, send fewer")
    return value


def _seed(value: Any) -> Any:
    return None if value == -1 and not isinstance(value, bool) else value


StopStrings = Annotated[Any, AfterValidator(_stop_strings), WithJsonSchema({"anyOf": [
    _TEXT | {"maxLength": MAX_STOP_CHARACTERS}, {"type": "null"},
    {"type": "array", "items": _TEXT | {"minLength": 1}, "maxItems": MAX_STOP_STRINGS}]})]
Prompts = Annotated[Any, AfterValidator(_prompts), WithJsonSchema({"anyOf": [
    _TEXT | {"minLength": 1}, {"type": "array", "items": _TEXT | {"minLength": 1}, "minItems": 1}, _TOKEN_IDS,
    {"type": "array", "items": _TOKEN_IDS, "minItems": 1}]})]
MessageContent = Annotated[Any, AfterValidator(lambda value: None if value is None else _content(value)), WithJsonSchema({
    "anyOf": [_TEXT, {"type": "array", "items": {"type": "object", "required": ["type", "text"],
                                                 "properties": {"type": {"const": "text"}, "text": _TEXT}}},
              {"type": "null"}]})]
BadWords = Annotated[Any, AfterValidator(_bad_words), WithJsonSchema({"anyOf": [{"type": "null"}, {
    "type": "array", "items": _TEXT | {"pattern": r"\S"}, "maxItems": MAX_STOP_STRINGS}]})]
CacheSalt = Annotated[str | None, Field(max_length=MAX_STOP_CHARACTERS), AfterValidator(_cache_salt)]
TokenIds = Annotated[list[int], BeforeValidator(_not_too_many)]
Metadata = Annotated[dict[str, str], BeforeValidator(_not_too_many)]
LogitBias = Annotated[dict[str, float], BeforeValidator(_not_too_many)]
Seed = Annotated[int | None, BeforeValidator(_seed), limits(minimum=-1, maximum=2**63 - 1)]
"""-1 is what many programs send for none."""
