"""The parts of a chat's answer: what the model thought, what it says, and the tools that it calls."""

from dataclasses import dataclass, field

from nanovllm.serving.thinking import Reasoning, ThinkingParser, Thinks
from nanovllm.serving.tool_calls import CallArguments, CallBegun, CallBroken, CallPiece, Content, ToolCallParser

AnswerPiece = Reasoning | CallPiece


@dataclass(frozen=True)
class AnswerFormat:
    """What there is to be told apart in an answer. Immutable.

    thinks: whether it begins with thoughts. calls_tools: whether it may hold calls. max_calls: calls after these are left
    out; None sets no limit.
    """

    thinks: Thinks = Thinks.NO
    calls_tools: bool = False
    max_calls: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether all of the text is content."""
        return self.thinks is Thinks.NO and not self.calls_tools


class AnswerParser:
    """Cuts a growing answer into pieces. What thoughts say of calls is no call."""

    def __init__(self, form: AnswerFormat):
        self._thinking = ThinkingParser(form.thinks)
        self._calls = ToolCallParser() if form.calls_tools else None
        self._max_calls = form.max_calls

    @property
    def is_thinking(self) -> bool:
        return self._thinking.is_thinking

    def push(self, text: str, final: bool = False) -> list[AnswerPiece]:
        """Take in a piece of text, or the last one; returns what it settles."""
        settled = [self._thinking.push(text), *([self._thinking.finish()] if final else ())]
        pieces: list[AnswerPiece] = []
        for thoughts, answer in settled:
            if thoughts:
                pieces.append(Reasoning(thoughts))
            if answer:
                pieces += self._calls.push(answer) if self._calls else [Content(answer)]
        if final and self._calls:
            pieces += self._calls.finish()
        return [piece for piece in pieces if self._is_wanted(piece)]

    def _is_wanted(self, piece: AnswerPiece) -> bool:
        return isinstance(piece, Reasoning | Content) or self._max_calls is None or piece.index < self._max_calls


def whole_pieces(text: str, form: AnswerFormat) -> list[AnswerPiece]:
    """The pieces of a whole answer. Calls that came to nothing are content."""
    pieces = AnswerParser(form).push(text, final=True)
    broken = {piece.index for piece in pieces if isinstance(piece, CallBroken)}
    told = [Content(piece.source) if isinstance(piece, CallBroken) else piece for piece in pieces]
    return [piece for piece in told if not (isinstance(piece, CallBegun | CallArguments) and piece.index in broken)]


@dataclass
class ToolCall:
    """A call of a tool. arguments: a JSON object, as text."""

    name: str
    arguments: str = ""


@dataclass
class Answer:
    """A whole answer in its parts. Calls that came to nothing stand in the content."""

    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @classmethod
    def of(cls, text: str, form: AnswerFormat) -> "Answer":
        answer = cls()
        calls: dict[int, ToolCall] = {}
        for piece in whole_pieces(text, form):
            if isinstance(piece, Reasoning):
                answer.reasoning += piece.text
            elif isinstance(piece, Content):
                answer.content += piece.text
            elif isinstance(piece, CallBegun):
                calls[piece.index] = ToolCall(piece.name)
            elif isinstance(piece, CallArguments):
                calls[piece.index].arguments += piece.text
        answer.calls = list(calls.values())
        return answer
