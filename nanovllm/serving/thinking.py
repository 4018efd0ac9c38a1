"""What a model thinks before it answers, told apart from the answer: `<think> ... </think>`, as Qwen and DeepSeek write it."""

from dataclasses import dataclass
from enum import Enum

BEGIN, END = "<think>", "</think>"


class Thinks(Enum):
    """Whether an answer begins with thoughts."""

    NO = "no"          # the prompt has closed them, or the model does not think
    MAYBE = "maybe"    # the model opens them itself, or does not
    ALREADY = "already"  # the prompt has opened them

    @classmethod
    def within(cls, begun: str) -> "Thinks":
        """What an answer that has begun leaves open."""
        return cls.ALREADY if begun.rfind(BEGIN) > begun.rfind(END) else cls.NO

    @classmethod
    def after(cls, prompt: str) -> "Thinks":
        """What the prompt of a model that can think leaves open."""
        end = prompt.rstrip()
        return cls.ALREADY if end.endswith(BEGIN) else cls.NO if end.endswith(END) else cls.MAYBE


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks."""

    text: str


class ThinkingParser:
    """Cuts a growing text into thoughts and the answer that follows them.

    Owns the text that may be the beginning of a tag, and spaces at both ends of the thoughts, which are dropped, as are
    those before the answer. How the text is cut into pieces never changes what is found. Thoughts that never end are all
    there is: a model that ran out of tokens has not answered.
    """

    def __init__(self, thinks: Thinks):
        self._state = thinks
        self._held = ""
        self._drops_space = thinks is not Thinks.NO

    def push(self, text: str) -> tuple[str, str]:
        """Take in a piece of text; returns (thoughts, answer) that it settles."""
        self._held += text
        if self._state is Thinks.MAYBE:
            begun = self._held.lstrip()
            if begun.startswith(BEGIN):
                self._held, self._state = begun.removeprefix(BEGIN), Thinks.ALREADY
            elif not BEGIN.startswith(begun):
                self._state, self._drops_space = Thinks.NO, False
            else:
                return "", ""
        thoughts = self._take_thoughts() if self._state is Thinks.ALREADY else ""
        return thoughts, self._take_answer() if self._state is Thinks.NO else ""

    def finish(self) -> tuple[str, str]:
        """End the text: (thoughts, answer) that were held back."""
        held, self._held = self._held, ""
        if self._state is Thinks.ALREADY:
            return held.strip() if self._drops_space else held.rstrip(), ""
        return "", "" if self._drops_space and self._state is Thinks.NO else held

    @property
    def is_thinking(self) -> bool:
        return self._state is Thinks.ALREADY

    def _take_thoughts(self) -> str:
        if self._drops_space:
            self._held = self._held.lstrip()
        end = self._held.find(END)
        if end >= 0:
            thoughts, self._held = self._held[:end].rstrip(), self._held[end + len(END):]
            self._state, self._drops_space = Thinks.NO, True
            return thoughts
        keep = overlap(self._held, END)
        thoughts = self._held[:len(self._held) - keep].rstrip()
        self._held = self._held[len(thoughts):]
        self._drops_space = self._drops_space and not thoughts
        return thoughts

    def _take_answer(self) -> str:
        if self._drops_space:
            self._held = self._held.lstrip()
        answer, self._held = self._held, ""
        self._drops_space = self._drops_space and not answer
        return answer


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
