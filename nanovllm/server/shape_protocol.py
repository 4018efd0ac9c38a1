"""What a client may ask of an answer's shape: `response_format`, as in the OpenAI API, and vLLM's `structured_outputs`."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import WithJsonSchema

from nanovllm.errors import InvalidRequest
from nanovllm.structured_outputs import SHAPES, StructuredOutputsParams
from nanovllm.utils.checks import check_request
from nanovllm.utils.numbers import shown

_SCHEMA_FIELD = "response_format.json_schema.schema"
_NOT_SERVED = {"structural_tag": "write it as a grammar", "whitespace_pattern": "blanks are limited already",
               "disable_additional_properties": "put additionalProperties into the schema"}
_HARMLESS = {"disable_fallback", "backend", "_backend"}  # there is one backend, and nothing to fall back on


def response_shape(given: dict[str, Any] | None) -> StructuredOutputsParams | None:
    """What a `response_format` asks for. Raises InvalidRequest, naming the field."""
    kind = "text" if given is None else given.get("type")
    check_request(kind in ("text", "json_object", "json_schema"), "response_format.type", kind,
                  "'text', 'json_object' or 'json_schema'", "other shapes are asked for by structured_outputs")
    allowed = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    _check_names("response_format", given or {}, allowed)
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if given is None or kind == "text":
        return None
    said = given.get("json_schema")
    check_request(isinstance(said, dict), "response_format.json_schema", said, "an object with a name and a schema",
                  'send {"name": "answer", "schema": {...}}')
    assert isinstance(said, dict)
    _check_names("response_format.json_schema", said, {"name", "description", "schema", "strict"})
    for name, kinds in (("name", str), ("description", str), ("strict", bool)):
        check_request(said.get(name) is None or isinstance(said[name], kinds), f"response_format.json_schema.{name}",
                      said.get(name), f"a {'text' if kinds is str else 'bool'} or left out", "leave it out")
    check_request(isinstance(said.get("schema"), dict), _SCHEMA_FIELD, said.get("schema"), "a JSON schema, as an object",
                  "ask for type 'json_object' if any object will do")
    return _renaming(_SCHEMA_FIELD, lambda: StructuredOutputsParams(json=said["schema"]))


def structured_shape(given: dict[str, Any] | None) -> StructuredOutputsParams | None:
    """What `structured_outputs` asks for; {} asks for nothing. Raises InvalidRequest, naming the field."""
    said = {name: value for name, value in (given or {}).items() if value is not None and name not in _HARMLESS}
    for name, remedy in _NOT_SERVED.items():
        check_request(not said.pop(name, None), f"structured_outputs.{name}", (given or {}).get(name), "left out", remedy)
    _check_names("structured_outputs", said, {*SHAPES, "disable_any_whitespace"})
    asks = any(name in said and said[name] is not False for name in SHAPES)
    return StructuredOutputsParams(**said) if asks else None


def shape_of(response_format: dict[str, Any] | None, structured_outputs: dict[str, Any] | None
             ) -> StructuredOutputsParams | None:
    """The one shape that a request asks for, if any."""
    by_format, by_fields = response_shape(response_format), structured_shape(structured_outputs)
    check_request(by_format is None or by_fields is None, "structured_outputs", structured_outputs,
                  "left out beside a response_format other than text", "ask by one of the two")
    return by_fields if by_format is None else by_format


def named_by_client(error: InvalidRequest, response_format: dict[str, Any] | None) -> InvalidRequest:
    """A complaint about a shape, by the name of the field that it came in."""
    for ours, theirs in (("structured_outputs.json=", f"{_SCHEMA_FIELD}="),
                         ("structured_outputs.json_object=", "response_format.type=")):
        if response_format is not None and str(error).startswith(ours) and response_shape(response_format) is not None:
            return InvalidRequest(theirs + str(error).removeprefix(ours))
    return error


def _renaming(name: str, make: Callable[[], StructuredOutputsParams]) -> StructuredOutputsParams:
    try:
        return make()
    except InvalidRequest as error:
        raise InvalidRequest(str(error).replace("structured_outputs.json", name, 1)) from None


def _check_names(owner: str, given: dict[str, Any], known: set[str]) -> None:
    for name, value in given.items():
        check_request(name in known or value is None, owner, name, f"an object of {', '.join(sorted(known))}",
                      f"leave {shown(name)} out")


_NULL: dict[str, Any] = {"type": "null"}
_OBJECT: dict[str, Any] = {"type": "object"}
ResponseFormat = Annotated[dict[str, Any] | None, WithJsonSchema({"anyOf": [_NULL, {
    "type": "object", "required": ["type"], "additionalProperties": False, "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {
            "type": "object", "required": ["schema"], "additionalProperties": False, "properties": {
                "name": {"type": "string"}, "description": {"type": "string"}, "strict": {"type": "boolean"},
                "schema": _OBJECT}}}}]})]
StructuredOutputs = Annotated[dict[str, Any] | None, WithJsonSchema({"anyOf": [_NULL, {
    "type": "object", "additionalProperties": False, "properties": {
        "json": {"anyOf": [_OBJECT, {"type": "string"}]}, "regex": {"type": "string", "minLength": 1},
        "choice": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        "grammar": {"type": "string", "minLength": 1}, "json_object": {"type": "boolean"},
        "disable_any_whitespace": {"type": "boolean"}}}]})]
