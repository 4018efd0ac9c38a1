"""Schemas as Pydantic, zod and OpenAPI write them: they compile, and every answer they let through is one of the schema's."""

import json
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field, SecretStr

from nanovllm import InvalidRequest, StructuredOutputsParams
from nanovllm.config import Config
from nanovllm.serving.grammars import GrammarCompiler
from nanovllm.serving.json_schemas import compilable
from nanovllm.serving.tokenizer import load_tokenizer

CONFIG = Config(device="cpu")
TOKENIZER = load_tokenizer(CONFIG.model)


@pytest.fixture(scope="module")
def compiler():
    return GrammarCompiler(TOKENIZER, CONFIG.hf_config.vocab_size, CONFIG.eos_token_ids)


def accepts(compiler, schema, value) -> bool:
    """Whether an answer may be this value. What it accepts must be valid."""
    matcher = compiler.matcher(StructuredOutputsParams(json=schema))
    tokens = TOKENIZER.encode(json.dumps(value, ensure_ascii=False), add_special_tokens=False)
    taken = all(matcher.advance(token) for token in tokens) and matcher.is_accepting
    if taken:
        jsonschema.validate(value, schema)
    return taken


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog", "puppy"] = "dog"
    name: str = ""


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


def test_a_union_with_a_discriminator(compiler):
    """Pydantic writes oneOf with references. A default makes its property one that may be left out, and then both would fit."""
    schema = Owner.model_json_schema()
    assert "oneOf" in json.dumps(schema) and "required" not in schema["$defs"]["Dog"]
    assert accepts(compiler, schema, {"pet": {"kind": "cat", "lives": 9}})
    assert accepts(compiler, schema, {"pet": {"kind": "puppy", "name": "Rex"}})
    assert accepts(compiler, schema, {"pet": {"kind": "dog"}})
    assert not accepts(compiler, schema, {"pet": {"kind": "dog", "lives": 9, "name": 5}})
    assert not accepts(compiler, schema, {"pet": {"name": "Rex"}}) and not accepts(compiler, schema, {"pet": {"kind": "hen"}})


@pytest.mark.parametrize("schema", [
    {"oneOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"type": "object", "properties": {
        "b": {"type": "integer"}}}]},
    {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}], "$defs": {"A": {"type": "object", "properties": {
        "k": {"const": 1}}}}},
    {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {
        "$ref": "#/$defs/A"}}},
    {"oneOf": [{"$ref": "https://example.com/a"}, {"type": "object", "properties": {"k": {"const": 1}}}]},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
], ids=["any property", "twice the same", "in a circle", "elsewhere", "numbers"])  # fmt: skip
def test_a_union_that_may_overlap_is_refused(compiler, schema):
    with pytest.raises(InvalidRequest, match=r"structured_outputs\.json"):
        compiler.matcher(StructuredOutputsParams(json=schema))


class Odd(BaseModel):
    path: Path
    secret: SecretStr
    more: dict[str, int]


@pytest.mark.parametrize("schema, value", [
    (Odd.model_json_schema(), {"path": "a", "secret": "b", "more": {"c": 1}}),
    ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}, {"a": 1}),  # zod
    ({"type": "array", "items": {"type": "integer", "format": "int32"}, "uniqueItems": False}, [1, 1]),  # OpenAPI
    ({"type": "object", "properties": {"format": {"type": "string", "format": "binary"}, "uniqueItems": {"const": False},
                                       "oneOf": {"enum": [{"format": "x"}]}},
      "unevaluatedProperties": True, "dependentRequired": {}}, {"format": "a", "uniqueItems": False, "oneOf": {"format": "x"}}),
    ({"anyOf": [{"type": "array", "minContains": 1, "items": {"type": "null"}}, {"type": "string", "format": "phone"}]}, "+49"),
    ({"type": "array", "prefixItems": [{"type": "string", "format": "path"}], "items": {"type": "string", "format": "byte"}},
     ["a", "b"]),
], ids=["pydantic", "zod", "openapi", "names of keys", "nested", "items"])  # fmt: skip
def test_keys_that_ask_for_nothing(compiler, schema, value):
    before = json.dumps(schema)
    assert accepts(compiler, schema, value)
    assert json.dumps(schema) == before, "the client's schema was changed"


def test_keys_that_ask_for_something_stay():
    for schema in (
        {"type": "string", "format": "date"}, {"uniqueItems": True}, {"propertyNames": {"pattern": "^a"}}, {"not": {}},
        {"contains": {}, "minContains": 2}, {"enum": [{"format": "x"}]}, {"default": {"uniqueItems": False}},
        {"properties": {"format": {"type": "string"}}}, {"properties": ["a"]}, {"items": None}, {"oneOf": "a"},
    ):  # fmt: skip
        assert compilable(schema) == schema


@pytest.mark.parametrize("given", [
    {"json": {"const": "\ud83d"}}, {"json": '{"type": "object", "properties": {"\\ud83d": {}}}'},
    {"grammar": 'start: %json {"enum": ["\\udc00"]}'}], ids=str)
def test_half_of_a_surrogate_pair_is_named(given):
    """JSON can write it, as an escape, and no text can hold it."""
    name, = given
    with pytest.raises(InvalidRequest, match=rf"structured_outputs\.{name}=.*half of a surrogate pair"):
        StructuredOutputsParams(**given)
