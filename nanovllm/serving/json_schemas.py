"""JSON schemas as clients' libraries write them, in the words that llguidance compiles.

Pydantic, zod and the OpenAPI generators write keys that ask for nothing, or that say one thing in two ways. llguidance refuses
every key that it does not implement, whatever it asks for. What is changed here never lets an answer through that the schema
forbids; what cannot be said otherwise stays as it is, and is refused by its name.
"""

import json
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

# Formats that llguidance holds a text to. By the standard any other one is a remark (JSON Schema 2020-12, Validation, 7.2.1).
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "unknown"}
ONE_SCHEMA = {"items", "additionalItems", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames",
              "unevaluatedItems", "unevaluatedProperties"}
LISTS_OF_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems", "items"}
SCHEMAS_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
ASKS_FOR_NOTHING: dict[str, Callable[[Any, Schema], bool]] = {
    "format": lambda value, _: isinstance(value, str) and value not in FORMATS,
    "propertyNames": lambda value, _: value in (True, {}, {"type": "string"}),
    "uniqueItems": lambda value, _: value is False,
    "unevaluatedProperties": lambda value, _: value in (True, {}),
    "unevaluatedItems": lambda value, _: value in (True, {}),
    "dependentRequired": lambda value, _: value == {},
    "dependentSchemas": lambda value, _: value == {},
    "minContains": lambda _, schema: "contains" not in schema,
    "maxContains": lambda _, schema: "contains" not in schema,
}
MOST_REFERENCES = 16  # one to the next


def compilable(schema: Schema) -> Schema:
    """The same schema without keys that ask for nothing, and with `anyOf` for every `oneOf` whose schemas exclude each other.

    schema: of at most `structured_outputs.MAX_DEPTH` levels. It stays as it is.
    """
    found: Schema = _rewritten(schema, schema)
    return found


def _rewritten(schema: Any, root: Schema) -> Any:
    if not isinstance(schema, dict):
        return schema
    found: Schema = {}
    for key, value in schema.items():
        if key in ASKS_FOR_NOTHING and ASKS_FOR_NOTHING[key](value, schema):
            continue
        if key in LISTS_OF_SCHEMAS and isinstance(value, list):
            value = [_rewritten(each, root) for each in value]
        elif key in ONE_SCHEMA:
            value = _rewritten(value, root)
        elif key in SCHEMAS_BY_NAME and isinstance(value, dict):
            value = {name: _rewritten(each, root) for name, each in value.items()}
        found[key] = value
    branches = found.get("oneOf")
    if isinstance(branches, list) and "anyOf" not in found and (apart := _apart(branches, schema.get("discriminator"), root)):
        del found["oneOf"]
        found["anyOf"] = apart
    return found


def _apart(branches: list[Any], discriminator: Any, root: Schema) -> list[Schema] | None:
    """The schemas of a oneOf, none of which accepts what another does; None when that cannot be told.

    They are objects with a property whose values differ. One that may be left out, as where it has a default, becomes
    required: an object without it would be accepted by several.
    """
    objects = [_resolved(branch, root) for branch in branches]
    if len(objects) < 2 or not all(isinstance(each, dict) and isinstance(each.get("properties"), dict) for each in objects):
        return None
    said = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
    for name in [said] if isinstance(said, str) else list(objects[0]["properties"]):
        values = [_values(_resolved(each["properties"].get(name), root)) for each in objects]
        if all(values) and len(set().union(*values)) == sum(map(len, values)):
            return [branch if _is_required(name, each) else {"allOf": [branch, {"required": [name]}]}
                    for branch, each in zip(branches, objects)]
    return None


def _resolved(schema: Any, root: Schema) -> Any:
    """What a schema that is a reference within the document stands for; None where it leads nowhere."""
    for _ in range(MOST_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if reference is None:
            return schema
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        schema = root
        for step in filter(None, reference[1:].split("/")):
            schema = schema.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return None


def _values(schema: Any) -> set[str]:
    """The values that a schema lists, as JSON; none where it lists none."""
    if not isinstance(schema, dict):
        return set()
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return {json.dumps(value, sort_keys=True) for value in listed} if isinstance(listed, list) else set()


def _is_required(name: str, schema: Schema) -> bool:
    required = schema.get("required")
    return isinstance(required, list) and name in required and schema.get("type") == "object"
