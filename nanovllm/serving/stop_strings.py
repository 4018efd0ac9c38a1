"""Stop strings in a text that grows by pieces."""


class StopStrings:
    """Finds the first stop string in a growing text, and releases only text that cannot be the beginning of one.

    Owns the text that is held back. How the text is cut into pieces never changes what is found: the stop string that is
    complete first wins, the longest of those that are complete together. It knows no tokens.

    found: the stop string that ended the text, once there is one. include: release it with the text before it.
    """

    def __init__(self, stops: tuple[str, ...], include: bool = False):
        self._stops = stops
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str, search: bool = True) -> str:
        """Take in a piece; returns the text that is released. Without `search`, no stop string may end in this piece."""
        text, old = self._held + piece, len(self._held)
        if search and (match := self._first_match(text, old)):
            end, start, self.found = match
            self._held = ""
            return text[:end if self._include else start]
        keep = max((n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
                   default=0)
        self._held = text[len(text) - keep:]
        return text[:len(text) - keep]

    def flush(self) -> str:
        """End the text: returns what was held back, which no stop string completed."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str, old: int) -> tuple[int, int, str] | None:
        """(end, start, stop string) of the match that ends first, beyond the `old` characters already searched."""
        matches = []
        for stop in self._stops:
            start = text.find(stop, max(0, old + 1 - len(stop)))
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        return min(matches, default=None)
