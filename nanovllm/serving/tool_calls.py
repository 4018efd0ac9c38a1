"""Tool calls in the text of a model that writes them as Hermes and Qwen do, told apart from the text around them.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from nanovllm.serving.thinking import overlap

BEGIN, END = "<tool_call>", "</tool_call>"
LONGEST_HEAD = 1024  # characters of a call up to its arguments; a call with a longer head is let go when it is whole
_MARK, _MARK_IN_STRING = re.compile(r'["{}\[\]<]'), re.compile(r'["\\]')
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call whose name is known. index: which call of the answer, from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments: JSON, as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call that is whole: its arguments are a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """A call that had begun and is none: it is no JSON, or never ended. source: what the model wrote of it."""

    index: int
    source: str


CallPiece = Content | CallBegun | CallArguments | CallEnded | CallBroken


class ToolCallParser:
    """Cuts a growing text into content and tool calls.

    Owns the text that may still become either: what may be the beginning of `<tool_call>`, and a call up to its name. Spaces
    around calls belong to neither and are dropped. How the text is cut into pieces never changes what is found.

    A call's arguments are let go as they come, once its name is known; a call with its keys in another order is let go when
    it is whole. What turns out to be no call is content, as in vLLM; `CallBroken` says so of one that had begun.
    """

    def __init__(self) -> None:
        self._held = ""  # not looked at yet, or still to be told apart
        self._call: _Call | None = None
        self._expects_end, self._drops_space = False, False  # after a call
        self._num_begun = 0

    def push(self, text: str) -> list[CallPiece]:
        """Take in a piece of text; returns what it settles."""
        self._held += text
        pieces: list[CallPiece] = []
        while self._held and self._read(pieces):
            pass
        return pieces

    def finish(self) -> list[CallPiece]:
        """End the text: what was held back is content."""
        pieces: list[CallPiece] = []
        if self._call is not None:
            self._end_call(pieces, self._call)
        elif self._held and not self._expects_end:
            pieces.append(Content(self._held))
        self._held = ""
        return pieces

    def _read(self, pieces: list[CallPiece]) -> bool:
        """Take what can be told from the held text; False when it takes more text to go on."""
        if self._call is not None:
            self._held = self._call.push(self._held, pieces)
            if not self._call.is_over:
                return False
            self._end_call(pieces, self._call)
            return True
        if self._drops_space:
            self._held = self._held.lstrip()
        if self._expects_end and self._held.startswith(END):
            self._held, self._expects_end = self._held.removeprefix(END), False
            return True
        if self._expects_end and END.startswith(self._held):
            return False
        self._expects_end = False
        return self._read_content(pieces)

    def _read_content(self, pieces: list[CallPiece]) -> bool:
        start = self._held.find(BEGIN)
        end = len(self._held) - overlap(self._held, BEGIN) if start < 0 else start
        if text := self._held[:end].rstrip():
            pieces.append(Content(text))
            self._drops_space = False
        if start < 0:
            self._held = self._held[len(text):]
            return False
        self._call = _Call(self._num_begun, self._held[len(text):start])
        self._held = self._held[start + len(BEGIN):]
        return True

    def _end_call(self, pieces: list[CallPiece], call: "_Call") -> None:
        self._expects_end = self._drops_space = call.finish(pieces)
        self._num_begun += call.has_begun
        self._call = None


class _Call:
    """The call at hand, from behind `<tool_call>` to the end of its JSON. space: what stood before it."""

    def __init__(self, index: int, space: str):
        self._index, self._space = index, space
        self._pieces: list[str] = []  # put together once, at the end: a call may be long
        self._size = 0
        self._whole, self._arguments = _Object(), _Object()
        self._name = ""
        self._start = self._sent = 0  # of the source: where the arguments begin, and up to where they are out
        self.has_begun = False

    @property
    def is_over(self) -> bool:
        return self._whole.has_ended or self._whole.is_broken

    def push(self, text: str, pieces: list[CallPiece]) -> str:
        """Take in text; returns what comes after the call's end."""
        taken = self._whole.push(text)
        self._pieces.append(text[:taken])
        if self.has_begun:
            self._send(text[:taken], pieces)
        elif self._size < LONGEST_HEAD:
            source = "".join(self._pieces)
            head = _HEAD.match(source, 0, LONGEST_HEAD)
            if head and isinstance(name := _loaded(head[1]), str):
                self._name, self.has_begun = name, True
                self._start = self._sent = head.end()
                pieces.append(CallBegun(self._index, name))
                self._send(source[self._start:], pieces)
        self._size += taken
        return text[taken:]

    def _send(self, text: str, pieces: list[CallPiece]) -> None:
        """Let go what belongs to the arguments, of text that follows what was looked at before."""
        if self._arguments.has_ended or not text:
            return
        taken = self._arguments.push(text)
        if taken:
            self._sent += taken
            pieces.append(CallArguments(self._index, text[:taken]))

    def finish(self, pieces: list[CallPiece]) -> bool:
        """Say how the call ended; whether it is one."""
        source = "".join(self._pieces)
        call = _loaded(source) if self._whole.has_ended else None
        call = call if isinstance(call, dict) else {}
        name, arguments = call.get("name"), call.get("arguments")
        if self.has_begun:  # a key that comes twice counts as it comes last
            is_call = (name, arguments) == (self._name, _loaded(source[self._start:self._sent]))
        else:
            is_call = isinstance(name, str) and isinstance(arguments, dict)
        if not is_call:
            source = f"{self._space}{BEGIN}{source}"
            pieces.append(CallBroken(self._index, source) if self.has_begun else Content(source))
            return False
        if not self.has_begun:
            self.has_begun = True
            pieces += [CallBegun(self._index, str(name)),
                       CallArguments(self._index, json.dumps(arguments, ensure_ascii=False))]
        pieces.append(CallEnded(self._index))
        return True


class _Object:
    """Finds the end of one JSON object in a growing text, by its brackets. It does not say whether what is inside is JSON."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self.has_ended = False
        self.is_broken = False  # it cannot become an object any more

    def push(self, text: str) -> int:
        """Take in text; returns how much of it belongs to the object."""
        position = 0
        if self._is_escaped and text:
            position, self._is_escaped = 1, False
        if not self._depth:
            position = len(text) - len(text.lstrip())
            self.is_broken = text[position:position + 1] not in ("", "{")
        while not (self.is_broken or self.has_ended):
            mark = (_MARK_IN_STRING if self._in_string else _MARK).search(text, position)
            if mark is None:
                return len(text)
            position = mark.end()
            if mark[0] == "\\":
                self._is_escaped = position == len(text)
                position += 1
            elif mark[0] == '"':
                self._in_string = not self._in_string
            elif mark[0] == "<":  # the tag that ends the call comes before its brackets are closed
                self.is_broken = True
                return mark.start()
            else:
                self._depth += 1 if mark[0] in "{[" else -1
                self.has_ended = not self._depth
        return position


def _loaded(text: str) -> Any:
    """What a JSON text says; None where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise json.JSONDecodeError("Python's, and not JSON's", constant, 0)
