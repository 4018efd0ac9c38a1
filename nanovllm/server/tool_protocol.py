"""What a client may say of tools: those that the model may call, which of them it must, and the calls of a conversation."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from nanovllm.errors import InvalidRequest
from nanovllm.server.fields import is_text, limits
from nanovllm.server.protocol import Body
from nanovllm.structured_outputs import StructuredOutputsParams
from nanovllm.utils.checks import check
from nanovllm.utils.numbers import shown

MAX_TOOLS = 128  # of one request, as in the OpenAI API
MAX_CALLS = 128  # of one message
TOOL_NAME = r"^[A-Za-z0-9_.:/-]{1,128}$"
_CHOICES = ("none", "auto", "required")


class FunctionDefinition(Body):
    """A function that the model may call. parameters: the JSON schema of its arguments, an object; none takes none."""

    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates write it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}

    def schema_of_arguments(self, is_required: bool) -> dict[str, Any] | None:
        """What the arguments are held to: their schema, where the tool is strict or has to be called; else any object."""
        return self.function.parameters if is_required or self.function.strict else {}


def _arguments(value: Any) -> Any:
    """What JSON text says, where it is an object: a template that got text would put it into quotation marks."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            said = json.loads(value)
        except (ValueError, RecursionError):
            said = None
        value = said if isinstance(said, dict) else value
    if not is_text(value) and not isinstance(value, dict):
        raise ValueError("must be a JSON object, as text")
    return value


class CalledFunction(Body):
    """What an assistant called."""

    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[Any, AfterValidator(_arguments), WithJsonSchema({"anyOf": [
        {"type": "string"}, {"type": "object"}, {"type": "null"}]})] = None


class MessageToolCall(Body):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction
    index: int | None = None
    provider_specific_fields: dict[str, Any] | None = None

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": {} if self.function.arguments is None else self.function.arguments}
        return {"type": "function", "function": function} | ({} if self.id is None else {"id": self.id})


def _tool_choice(value: Any) -> Any:
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    named = isinstance(function, dict) and isinstance(function.get("name"), str)
    if value is not None and value not in _CHOICES and not named:
        raise ValueError(f"must be one of {', '.join(_CHOICES)} or "
                         '{"type": "function", "function": {"name": NAME}}; this server offers no other')
    return value


Tools = Annotated[list[Tool], Field(fail_fast=True), limits(maxItems=MAX_TOOLS)]
ToolCalls = Annotated[list[MessageToolCall], Field(fail_fast=True), limits(maxItems=MAX_CALLS)]
ToolChoice = Annotated[Any, AfterValidator(_tool_choice), WithJsonSchema({"anyOf": [
    {"enum": [*_CHOICES, None]},
    {"type": "object", "required": ["type", "function"], "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}}]})]


class CalledTools:
    """What tools, tool_choice and parallel_tool_calls of one request come to together.

    tools: those that the model is told of, in order; none where it may call none. name: the one that it must call.

    Raises InvalidRequest, naming the field, where they contradict each other, and for a schema that is too large.
    """

    def __init__(self, tools: list[Tool] | None, choice: Any, parallel: bool | None):
        tools = tools or []
        check(len(tools) <= MAX_TOOLS, "tools", f"{len(tools)} tools", f"at most {MAX_TOOLS}", "send fewer")
        names = [tool.function.name for tool in tools]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        check(twice is None, "tools", twice, "named once each", "rename one of them")
        self.name: str | None = choice["function"]["name"] if isinstance(choice, dict) else None
        check(self.name is None or self.name in names, "tool_choice", self.name, "the name of one of the tools",
              "add it to tools, or choose 'auto'")
        check(bool(tools) or choice != "required", "tool_choice", choice, "left out without tools", "send tools, too")
        for i, tool in enumerate(tools):
            _check_parameters(f"tools[{i}].function.parameters", tool.function.parameters)
        self.tools = [] if choice == "none" else tools
        self.is_required = choice == "required" or self.name is not None
        self.max_calls = 1 if parallel is False or self.name is not None else None

    @property
    def callable(self) -> list[Tool]:
        """The tools that an answer may call."""
        return [tool for tool in self.tools if self.name in (None, tool.function.name)]

    @property
    def is_constrained(self) -> bool:
        """Whether calls are held to a schema: it must call a tool, or one of them is strict."""
        return self.is_required or any(tool.function.strict for tool in self.tools)


def _check_parameters(name: str, schema: dict[str, Any] | None) -> None:
    if schema is None:
        return
    kind = schema.get("type", "object")
    if kind != "object":
        raise InvalidRequest(f"{name}={shown(schema)}: must be a JSON schema of type 'object', as arguments have names; "
                             "put it into properties.")
    try:
        StructuredOutputsParams(json=json.dumps(schema))
    except (InvalidRequest, RecursionError, ValueError) as error:
        said = str(error).replace("structured_outputs.json", name) if isinstance(error, InvalidRequest) else (
            f"{name}: must be a JSON schema of fewer levels; flatten it.")
        raise InvalidRequest(said) from None
