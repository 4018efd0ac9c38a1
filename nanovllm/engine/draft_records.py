"""What became of drafts: counted for whoever looks on, and remembered of each sequence. Imports no torch."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class DraftCounts:
    """Drafts checked and accepted. by_position: [drafted, accepted] of the first draft of a step, the second, ..."""

    by_position: list[list[int]] = field(default_factory=list)

    @property
    def drafted(self) -> int:
        return sum(drafted for drafted, _ in self.by_position)

    @property
    def accepted(self) -> int:
        return sum(accepted for _, accepted in self.by_position)

    def add(self, num_drafts: int, num_accepted: int) -> None:
        while len(self.by_position) < num_drafts:
            self.by_position.append([0, 0])
        for position in range(num_drafts):
            self.by_position[position][0] += 1
            self.by_position[position][1] += position < num_accepted


@dataclass(slots=True)
class Record:
    """What a sequence's drafts were worth: right ones and looked-at ones, fading; until which length it rests, and how often it
    has since they last paid; and how often in a row nothing was found."""

    right: float = 0.0
    tried: float = 0.0
    rests_until: int = 0
    num_rests: int = 0
    num_misses: int = 0
