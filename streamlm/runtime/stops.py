"""Stop strings: text that is written piece by piece ends where one of them begins."""

import re
from collections.abc import Iterable
from typing import Self

ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class Stops:
    """Lets text through, but for an end that may turn out to be the beginning of a stop string.

    Args:
        stops: strings that end the text; the earliest one counts.

    Attributes:
        held: text that was pushed and is not given out yet.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self.held = ""

    @classmethod
    def at(cls, stop: str | Iterable[str]) -> Self:
        """Of one string or several.

        Raises:
            ValueError: one of them is empty.
        """
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) and text for text in stops):
            raise ValueError(f"stop = {stop!r}; allowed: strings that are not empty")
        return cls(stops)

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece; return what may be given out now, and whether a stop string was found."""
        held = self.held + text
        found = min((at for stop in self._stops if (at := held.find(stop)) >= 0), default=-1)
        ready = found if found >= 0 else len(held) - self._could_begin(held)
        self.held = "" if found >= 0 else held[ready:]
        return held[:ready], found >= 0

    def _could_begin(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0


def unescaped(text: str) -> str:
    r"""Turn \n, \r, \t and \\ as somebody types them into what they stand for."""
    return re.sub(r"\\([nrt\\])", lambda found: ESCAPED[found[1]], text)
