"""What steps with drafts cost here, measured while they run. Imports no torch."""

from collections import deque
from statistics import median

ENOUGH = 6        # steps of a kind, and their median counts
EXPIRES = 2048    # steps of one kind after which it is measured anew what the other takes, at the latest
FIRST = 64        # steps with drafts after which those without are measured anew for the first time


class StepTimes:
    """The time from one step's end to the next one's, by how many sequences decode (in powers of two) and have drafts.

    A count of weights says what a long step costs. A short one costs its launches, waits and bookkeeping, and those depend on
    the machine: on a GPU a small model's step with drafts may take four times as long as one without. So both are timed.

    A step without drafts counts if it stands between two others. What it costs to go over to drafts and back, a millisecond
    on a GPU whose rows are written anew, is the drafts' affair: a look-up that finds something in every third step has to be
    worth that. The median of the last steps is taken: an end may be late because somebody was slow to ask for the next step.

    Whichever kind is taken for the quicker one, the other is not seen any more, and a wrong time would be believed for ever.
    So both expire.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], deque[float]] = {}
        self._medians: dict[tuple[int, int], float] = {}  # as far as they were asked for since the last time came in
        self._last: tuple[tuple[int, int], float] | None = None
        self._num_plain: dict[int, int] = {}  # steps since drafts were last timed
        self._num_drafting: dict[int, int] = {}  # and since steps without them were
        self._patience: dict[int, int] = {}  # how many of the latter it takes for them to be timed anew

    def note(self, num_seqs: int, num_drafts: int, now: float, before_drafts: bool = False) -> None:
        """A step of so many sequences has ended; num_drafts: the most that one of them had room for.

        before_drafts: the step in flight has some. It was launched while this one ran, which takes the host long, so the end of
        this one was seen late.
        """
        group = num_seqs.bit_length()
        if self._last is not None and self._last[0][0] == group:
            (_, last_drafts), then = self._last
            if num_drafts:
                self._add((group, num_drafts), now - then)
            elif before_drafts:
                now = min(now, then + (self._median((group, 0)) or now))  # what is left is the next step's
            elif not last_drafts:
                self._add((group, 0), now - then)
                self._num_drafting[group] = 0
            elif (plain := self._median((group, 0))) and (seconds := self._seconds.get((group, last_drafts))):
                self._add((group, last_drafts), seconds.pop() + max(0.0, now - then - plain))
        self._last = (group, num_drafts), now
        self._expire(group, num_drafts > 0)

    def _expire(self, group: int, drafting: bool) -> None:
        """Count a step of either kind, and forget what the other takes after long."""
        if drafting:
            self._num_plain[group] = 0
            self._num_drafting[group] = self._num_drafting.get(group, 0) + 1
            if self._num_drafting[group] >= self._patience.setdefault(group, FIRST):
                self._patience[group] = min(2 * self._patience[group], EXPIRES)
                self._forget(group, 0)
                self._num_drafting[group] = 0
        else:
            self._num_plain[group] = self._num_plain.get(group, 0) + 1
            if self._num_plain[group] == EXPIRES:
                self._forget(group, *(k for other, k in self._seconds if other == group and k))

    def _forget(self, group: int, *kinds: int) -> None:
        for num_drafts in kinds:
            self._seconds.pop((group, num_drafts), None)
            self._medians.pop((group, num_drafts), None)

    def _add(self, kind: tuple[int, int], seconds: float) -> None:
        self._seconds.setdefault(kind, deque(maxlen=16)).append(seconds)
        self._medians.pop(kind, None)

    def _median(self, kind: tuple[int, int]) -> float | None:
        """None until there are enough of its kind."""
        if kind not in self._medians and len(seconds := self._seconds.get(kind, ())) >= ENOUGH:
            self._medians[kind] = median(seconds)
        return self._medians.get(kind)

    def _timed(self, group: int) -> list[int]:
        """The numbers of drafts, none left out, of which there are enough."""
        return [k for (other, k), seconds in self._seconds.items() if other == group and k and len(seconds) >= ENOUGH]

    def interrupt(self) -> None:
        """A step of another kind has ended: one with a prompt in it, or none at all."""
        self._last = None

    def lacks_plain(self, num_seqs: int) -> bool:
        """Whether drafts have been timed, and what they are to be compared with has not: take a few steps without."""
        group = num_seqs.bit_length()
        return len(self._seconds.get((group, 0), ())) < ENOUGH and bool(self._timed(group))

    def ratio(self, num_seqs: int, num_drafts: int, cost: float) -> float:
        """What a step with so many drafts of each sequence takes, as a multiple of one without.

        cost: what one more draft is thought to add. It says all where nothing is measured, and else what lies between this
        number of drafts and the nearest that was.
        """
        group = num_seqs.bit_length()
        plain, timed = self._median((group, 0)), self._timed(group)
        if plain is None or not timed:
            return 1 + num_drafts * cost
        nearest = min(timed, key=lambda k: (abs(k - num_drafts), -k))
        seconds = self._median((group, nearest))
        assert seconds is not None  # there are enough
        return seconds / plain + (num_drafts - nearest) * cost
