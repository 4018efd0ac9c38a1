"""The messages of a conversation, as clients send them. Strict as `protocol` says."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from nanovllm.server.fields import MessageContent, Only
from nanovllm.server.protocol import Body
from nanovllm.server.tool_protocol import ToolCalls


class Message(Body):
    """One turn of a conversation. An answer of this server may be handed back as it is.

    Programs echo what other servers put into their answers: what says nothing to the model is taken and left out.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: ToolCalls | None = None
    tool_call_id: str | None = None
    content: Annotated[MessageContent, Field(validate_default=True)] = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    provider_specific_fields: dict[str, Any] | None = None
    thinking_blocks: list[Any] | None = None
    id: str | None = None
    index: int | None = None
    status: str | None = None
    weight: float | None = None
    cache_control: dict[str, Any] | None = None
    audio: Annotated[Any, Only()] = None
    images: Annotated[list[Any] | None, Only([])] = None
    function_call: Annotated[Any, Only()] = None

    @field_validator("tool_calls", "tool_call_id")
    @classmethod
    def _has_the_role(cls, value: Any, info: ValidationInfo) -> Any:
        role = {"tool_calls": "assistant", "tool_call_id": "tool"}[str(info.field_name)]
        if value and info.data.get("role", role) != role:
            raise ValueError(f"only a message of role {role!r} may have it; leave it out")
        return value

    @field_validator("content")
    @classmethod
    def _is_there(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise ValueError("required of every message but an assistant's")
        return "" if value is None else value

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        reasoning = self.reasoning if self.reasoning_content is None else self.reasoning_content
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if reasoning is not None:  # Qwen's templates put it into think tags, or leave it out of earlier turns
            message["reasoning_content"] = reasoning
        return message
