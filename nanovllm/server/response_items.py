"""The items that /v1/responses is given, and the messages of a chat that they come to."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema

from nanovllm.server.fields import is_text
from nanovllm.server.messages import Message
from nanovllm.server.protocol import Body
from nanovllm.server.tool_protocol import CalledFunction, MessageToolCall

_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "reasoning_text": "text", "summary_text": "text",
               "refusal": "refusal"}
_STRING = {"type": "string"}


def _text(value: Any) -> str:
    """What a text or a list of parts says."""
    if isinstance(value, list):
        texts = [part.get(_TEXT_PARTS.get(part.get("type", ""), "")) if isinstance(part, dict) else None for part in value]
        if not all(map(is_text, texts)):
            raise ValueError("parts must be of type 'input_text' or 'output_text'; this server reads nothing else")
        return "".join(map(str, texts))
    if not is_text(value):
        raise ValueError("must be a text or a list of parts of type 'input_text'")
    return str(value)


ItemText = Annotated[Any, AfterValidator(_text)]


class Item(Body):
    """What all items may say, and what says nothing to the model."""

    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ItemText
    phase: str | None = None


class FunctionCallItem(Item):
    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(min_length=1)]
    arguments: str


class FunctionCallOutputItem(Item):
    type: Literal["function_call_output"]
    call_id: str | None = None
    output: ItemText


class ReasoningItem(Item):
    type: Literal["reasoning"]
    content: ItemText | None = None
    summary: list[Any] | None = None
    encrypted_content: str | None = None


ITEMS: dict[str, type[MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem]] = {
    "message": MessageItem, "function_call": FunctionCallItem, "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem}


def _input(value: Any) -> list[Any]:
    """The items, of which a text is one."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text or a list of items, and not empty")
    items = []
    for i, item in enumerate(value):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if not isinstance(kind, str) or kind not in ITEMS:
            raise ValueError(f"item {i} must be of type {', '.join(ITEMS)}; this server reads no other")
        try:
            items.append(ITEMS[kind].model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            raise ValueError(f"item {i}, {'.'.join(map(str, first['loc']))[:100]}: {message}") from None
    return items


Input = Annotated[Any, AfterValidator(_input), WithJsonSchema({"anyOf": [
    _STRING,
    {"type": "array", "minItems": 1, "items": {"anyOf": [
        {"type": "object", "required": ["role", "content"], "properties": {
            "role": {"enum": ["user", "assistant", "system", "developer"]}, "content": _STRING}},
        {"type": "object", "required": ["type", "call_id", "name", "arguments"], "properties": {
            "type": {"const": "function_call"}, "call_id": _STRING, "name": _STRING, "arguments": _STRING}},
        {"type": "object", "required": ["type", "call_id", "output"], "properties": {
            "type": {"const": "function_call_output"}, "call_id": _STRING, "output": _STRING}},
        {"type": "object", "required": ["type"], "properties": {"type": {"const": "reasoning"}}}]}}]})]


def messages_of(items: list[Any]) -> list[Message]:
    """The conversation: what an assistant thought, said and called in a row is one message."""
    messages: list[Message] = []
    turn: dict[str, Any] = {}  # the assistant's, as far as it has come

    def end_turn() -> None:
        if turn:
            messages.append(Message(role="assistant", **turn))
            turn.clear()

    for item in items:
        if isinstance(item, FunctionCallItem):
            call = MessageToolCall(id=item.call_id, type="function",
                                   function=CalledFunction(name=item.name, arguments=item.arguments))
            turn.setdefault("tool_calls", []).append(call)
        elif isinstance(item, ReasoningItem):
            end_turn()
            turn["reasoning_content"] = item.content or ""
        elif isinstance(item, MessageItem) and item.role == "assistant":
            if "content" in turn or "tool_calls" in turn:
                end_turn()
            turn["content"] = item.content
        else:
            end_turn()
            messages.append(Message(role=item.role, content=item.content) if isinstance(item, MessageItem) else
                            Message(role="tool", tool_call_id=item.call_id, content=item.output))
    end_turn()
    return messages
