"""The grammar of an answer that thinks, calls tools or has a shape, in llguidance's variety of Lark.

Thoughts are free, whatever follows them is not: the grammar of the whole answer begins with theirs.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanovllm.errors import InvalidRequest
from nanovllm.serving import thinking, tool_calls
from nanovllm.serving.grammars import WHITESPACE
from nanovllm.serving.json_schemas import compilable
from nanovllm.serving.thinking import Thinks
from nanovllm.structured_outputs import StructuredOutputsParams
from nanovllm.utils.numbers import shown

MOST_CALLS = 16  # of one answer whose calls are held to a grammar: a model that must call has no other way to end
_TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # how models are taught to write calls
_DELIMITER = re.compile(r"\\.|/|\n", re.DOTALL)
_COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "unevaluatedProperties"}


@dataclass(frozen=True)
class CallableTool:
    """parameters: the JSON schema of the arguments; None takes none, and a dict that is empty takes any."""

    name: str
    parameters: dict[str, Any] | None


def answer_grammar(thinks: Thinks, tools: Sequence[CallableTool] = (), *, must_call: bool = False, max_calls: int | None = None,
                   shape: StructuredOutputsParams | None = None) -> StructuredOutputsParams | None:
    """What an answer is held to: its thoughts if it has any, then calls of `tools`, or else what `shape` says; None if nothing.

    tools: empty where calls are not held to anything. must_call: it has to be a call. Without, and without a shape, there is
    free text around the calls, as far as it holds no `<tool_call>`. max_calls: None allows MOST_CALLS.

    Raises InvalidRequest for a grammar of the client's own where something else has to be said beside it.
    """
    if not tools and (shape is None or thinks is Thinks.NO):
        return shape
    rules: list[str] = []
    rest = []
    if tools and not must_call and shape is None:
        rest.append(f"segment{{0,{max_calls or MOST_CALLS}}} text")
        rules += ["segment: before call", f"before[suffix={_quoted(tool_calls.BEGIN)}]: /(?s:.*)/",
                  f"call: {_quoted(chr(10))} tool {_quoted(chr(10) + tool_calls.END)}",
                  "text: TEXT", f"TEXT: /(?s:.*)/ & ~/(?s:.*){tool_calls.BEGIN}(?s:.*)/"]
    elif tools:
        rest.append("call" if max_calls == 1 else f"call ({_quoted(chr(10))} call){{0,{(max_calls or MOST_CALLS) - 1}}}")
        rules.append(f"call: {_quoted(tool_calls.BEGIN + chr(10))} tool {_quoted(chr(10) + tool_calls.END)}")
    if tools:
        rules.append("tool: " + " | ".join(f"tool_{i}" for i in range(len(tools))))
        for i, tool in enumerate(tools):
            opening = f'{{"name": {json.dumps(tool.name)}, "arguments": '
            rules += [f"tool_{i}: {_quoted(opening)} arguments_{i} {_quoted('}')}",
                      f"arguments_{i}: %json {_json(_arguments(tool.parameters), _TIGHT)}"]
    if shape is not None and not must_call:
        rest.append("shape")
        rules.append(f"shape: {_inlined(shape)}")
    thoughts = "" if thinks is Thinks.NO else "thoughts " if thinks is Thinks.ALREADY else "thoughts? "
    if thoughts:
        opened = "" if thinks is Thinks.ALREADY else f"{_quoted(thinking.BEGIN)} "
        rules += [f"thoughts: {opened}thought /\\n{{0,2}}/", f"thought[suffix={_quoted(thinking.END)}]: /(?s:.*)/"]
    return StructuredOutputsParams(grammar="\n".join([f"start: {thoughts}({' | '.join(rest)})", *rules, ""]))


def _arguments(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """The schema of a call's arguments, which are an object without names that the tool does not know."""
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema: dict[str, Any] = {"type": "object"} | parameters
    if "properties" in schema and "additionalProperties" not in schema and not _COMBINING & schema.keys():
        schema["additionalProperties"] = False
    return schema


def _inlined(shape: StructuredOutputsParams) -> str:
    if shape.schema is not None:
        flexible = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
        return "%json " + _json(json.loads(shape.schema), _TIGHT if shape.disable_any_whitespace else flexible)
    if shape.choice is not None:
        return " | ".join(map(_quoted, shape.choice))
    if shape.regex is not None:
        return f"/{_DELIMITER.sub(_escaped, shape.regex)}/"
    raise InvalidRequest(f"structured_outputs.grammar={shown(shape.grammar)}: must be left out when the model thinks or may "
                         "call tools, as the whole answer would have to follow it; turn thinking off (chat_template_kwargs), "
                         "or write it as json, regex or choice.")


def _json(schema: dict[str, Any], how: dict[str, Any]) -> str:
    # In JSON, % stands in texts only; %json would begin a schema of its own.
    return json.dumps(compilable(schema) | {"x-guidance": how}).replace("%", "\\u0025")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(found: re.Match[str]) -> str:
    """What ends an expression in Lark, written so that it does not; other escaped characters stay as they are."""
    return {"/": r"\x2f", "\\/": r"\x2f", "\n": r"\n", "\\\n": r"\n"}.get(found[0], found[0])
