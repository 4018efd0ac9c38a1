"""The events of a streamed response, in the OpenAI API's order, and the items that they make."""

import uuid
from typing import Any

from nanovllm.server.chat_replies import new_call_id
from nanovllm.server.schemas import ResponseBody
from nanovllm.serving.answer import AnswerPiece
from nanovllm.serving.thinking import Reasoning
from nanovllm.serving.tool_calls import CallArguments, CallBegun, CallBroken, CallEnded, Content

Event = dict[str, Any]
_OUTPUT_TEXT = {"type": "output_text", "annotations": [], "logprobs": []}
_REASONING_TEXT = {"type": "reasoning_text"}


class ResponseEvents:
    """Makes events of an answer's pieces, and keeps in `response` what they add up to.

    Owns the response, whose output grows by items: one is open at most, and no event of a later one comes before its last.
    """

    def __init__(self, response: ResponseBody):
        self.response = response
        self._num_events = 0
        self._item: dict[str, Any] | None = None

    def begin(self) -> list[Event]:
        return [self._event(f"response.{name}", response=self._snapshot()) for name in ("created", "in_progress")]

    def add(self, piece: AnswerPiece) -> list[Event]:
        """The events that tell of a piece."""
        if isinstance(piece, CallBegun):
            return self._open("function_call", {"id": _new_id("fc"), "call_id": new_call_id(), "name": piece.name,
                                                "arguments": ""})
        if isinstance(piece, CallArguments):
            assert self._item is not None
            self._item["arguments"] += piece.text
            return [self._item_event("response.function_call_arguments.delta", delta=piece.text)]
        if isinstance(piece, CallEnded | CallBroken):
            return self._close("completed" if isinstance(piece, CallEnded) else "incomplete")
        return self._add_text(piece)

    def end(self, status: str = "completed", reason: str | None = None, error: str | None = None) -> list[Event]:
        """The last events. status: completed, incomplete for a `reason`, or failed with an `error`."""
        events = self._close("completed" if status == "completed" else "incomplete")
        if not self.response["output"] and status == "completed":
            events += self._open_text(Content("")) + self._close("completed")
        self.response["status"] = status
        if reason is not None:
            self.response["incomplete_details"] = {"reason": reason}
        if error is not None:
            self.response["error"] = {"code": "server_error", "message": error}
        return [*events, self._event(f"response.{status}", response=self._snapshot())]

    def _add_text(self, piece: Reasoning | Content) -> list[Event]:
        kind = "reasoning" if isinstance(piece, Reasoning) else "message"
        events = [] if self._item is not None and self._item["type"] == kind else self._open_text(piece)
        assert self._item is not None
        self._item["content"][0]["text"] += piece.text
        said = {"delta": piece.text, "content_index": 0} | ({"logprobs": []} if kind == "message" else {})
        return [*events, self._item_event(f"response.{_text_name(kind)}.delta", **said)]

    def _open_text(self, piece: Reasoning | Content) -> list[Event]:
        if isinstance(piece, Reasoning):
            events = self._open("reasoning", {"id": _new_id("rs"), "summary": [], "content": []})
            part: dict[str, Any] = _REASONING_TEXT | {"text": ""}
        else:
            events = self._open("message", {"id": _new_id("msg"), "role": "assistant", "content": []})
            part = _OUTPUT_TEXT | {"text": ""}
        assert self._item is not None
        self._item["content"].append(part)
        return [*events, self._item_event("response.content_part.added", content_index=0, part=dict(part))]

    def _open(self, kind: str, fields: dict[str, Any]) -> list[Event]:
        events = self._close("completed")
        self._item = {"type": kind, "status": "in_progress"} | fields
        self.response["output"].append(self._item)
        item = self._item | ({"content": []} if "content" in self._item else {})
        return [*events, self._event("response.output_item.added", output_index=self._index, item=item)]

    def _close(self, status: str) -> list[Event]:
        if self._item is None:
            return []
        item, kind, events = self._item, self._item["type"], []
        item["status"] = status
        if kind == "function_call":
            events.append(self._item_event("response.function_call_arguments.done", arguments=item["arguments"],
                                           name=item["name"]))
        else:
            part = dict(item["content"][0])
            more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
            events.append(self._item_event(f"response.{_text_name(kind)}.done", content_index=0, text=part["text"], **more))
            events.append(self._item_event("response.content_part.done", content_index=0, part=part))
        events.append(self._event("response.output_item.done", output_index=self._index, item=_copied(item)))
        self._item = None
        return events

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _item_event(self, kind: str, **fields: Any) -> Event:
        assert self._item is not None
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._num_events} | fields
        self._num_events += 1
        return event

    def _snapshot(self) -> dict[str, Any]:
        return {**self.response, "output": [_copied(item) for item in self.response["output"]]}


def _copied(item: dict[str, Any]) -> dict[str, Any]:
    return item | ({"content": [dict(part) for part in item["content"]]} if "content" in item else {})


def _text_name(kind: str) -> str:
    return "reasoning_text" if kind == "reasoning" else "output_text"


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
